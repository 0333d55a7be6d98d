"""What the report shows of the runs of each task: one file per task, and view.py for what all of them have."""
