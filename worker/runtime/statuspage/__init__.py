"""The status page: HTML rendered here, readable without JavaScript, and nothing on it changes anything."""
