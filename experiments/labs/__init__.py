"""Options of the lab, and its treatment of problems."""
