"""The Lua scripts by which `store.py` writes: each one is a single step to everyone else.

The keys are `store.py`'s. Every script takes the time from the server.
"""

NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# KEYS job events jobs queued and, where there is an owner, the owner's jobs; ARGV id record kind type data owner.
CREATE = (
    NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'kind', ARGV[3], 'status', 'queued', 'epoch', 0, 'owner', ARGV[6])
redis.call('XADD', KEYS[2], '1-0', 'type', ARGV[4], 'data', ARGV[5], 'at', now)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
if KEYS[5] then redis.call('ZADD', KEYS[5], now, ARGV[1]) end
return 1
"""
)

# KEYS job leases queued; ARGV id lease_ms. Returns the new epoch, or 0 where there is nothing to claim.
CLAIM = (
    NOW
    + """
local status, till = unpack(redis.call('HMGET', KEYS[1], 'status', 'until'))
if status ~= 'queued' and status ~= 'running' then return 0 end
if till and tonumber(till) > now then return 0 end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return epoch
"""
)

# KEYS job leases; ARGV id epoch lease_ms. Returns 1 kept, 2 kept and cancel asked for, 0 lost.
RENEW = (
    NOW
    + """
local epoch, till, cancel = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'until', 'cancel'))
if epoch ~= ARGV[2] or not till then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return cancel and 2 or 1
"""
)

# KEYS job leases queued; ARGV id epoch. Gives an unfinished job back at once; its wake-up is the caller's.
RELEASE = (
    NOW
    + """
local epoch, status = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status'))
if epoch ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'until')
redis.call('ZREM', KEYS[2], ARGV[1])
if status == 'queued' or status == 'running' then redis.call('ZADD', KEYS[3], now, ARGV[1]) end
return 1
"""
)

# KEYS job events leases queued; ARGV id epoch seq type data status ended('1' or '').
# Returns OK, CANCEL (written, and cancel was asked for), DUP, GAP or FENCED.
APPEND = (
    NOW
    + """
local epoch, status, cancel = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status', 'cancel'))
if epoch ~= ARGV[2] then return 'FENCED' end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local seq = tonumber(string.match(newest[1][1], '^(%d+)'))
if tonumber(ARGV[3]) <= seq then return 'DUP' end
if status ~= 'queued' and status ~= 'running' then return 'FENCED' end
if tonumber(ARGV[3]) ~= seq + 1 then return 'GAP' end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'type', ARGV[4], 'data', ARGV[5], 'at', now)
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'status', ARGV[6]) end
if ARGV[7] ~= '' then
  redis.call('HDEL', KEYS[1], 'until')
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return cancel and 'CANCEL' or 'OK'
"""
)

# KEYS job events leases queued; ARGV id type data. A job that no worker has begun or holds ends at once, one that
# is being worked on is asked to. Returns the status after it, or nothing for an unknown job.
CANCEL = (
    NOW
    + """
local status, till = unpack(redis.call('HMGET', KEYS[1], 'status', 'until'))
if not status then return nil end
if status ~= 'queued' and status ~= 'running' then return status end
if status == 'running' and till and tonumber(till) > now then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  return status
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local seq = tonumber(string.match(newest[1][1], '^(%d+)'))
redis.call('XADD', KEYS[2], (seq + 1) .. '-0', 'type', ARGV[2], 'data', ARGV[3], 'at', now)
redis.call('HSET', KEYS[1], 'status', 'cancelled')
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HDEL', KEYS[1], 'until')
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 'cancelled'
"""
)
