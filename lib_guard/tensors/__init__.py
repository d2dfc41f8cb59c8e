"""Work on tensors alone: nothing here knows a host, a request or a setting."""
