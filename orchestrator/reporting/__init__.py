"""What was measured, read back from run folders: tables and plots. Needs neither Ray nor data."""
