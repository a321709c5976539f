"""The way of a message: intake, admit, dispatch, watch, settle, and the loop that walks it."""
