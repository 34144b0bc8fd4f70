"""What people see: names and output folded, timelines drawn, log lines put into words."""
