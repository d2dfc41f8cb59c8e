"""What a user sees in the WebUI's pages. Nothing here decides anything."""
