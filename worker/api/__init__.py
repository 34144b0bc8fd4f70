"""The queue API: its bodies and the client that speaks it."""
