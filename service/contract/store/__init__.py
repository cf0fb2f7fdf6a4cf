"""All data in Redis: keys, Lua scripts, leases, wake-ups and the reaper."""
