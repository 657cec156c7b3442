"""Flows and their Faust agents, one module each; run them from the folder that holds this one."""
