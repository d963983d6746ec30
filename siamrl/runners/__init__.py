"""Runners: generators that drive collect, sync and regress, and yield."""
