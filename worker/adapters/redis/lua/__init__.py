"""The Lua scripts: each file's head tells its keys, arguments and returns."""
