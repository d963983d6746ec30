"""Options: declared, read and shown; and those that launchers share."""
