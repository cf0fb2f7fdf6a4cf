"""The Lua scripts that write jobs, events and leases, and the Lua preambles that all scripts of the service share.

Each script runs as one atomic step. All scripts take the time from the Redis server. Every script may be repeated,
because the reply to it can be lost. A repeated call changes nothing and returns the first result, or reports that
nothing is left to do.

A job is leased while its hash has a `holder`; the lease ends at `until`. Only the reaper takes a job from a holder
whose lease has expired; until then the holder may still write and renew. The holder is a random token. It
distinguishes a repeated claim from another worker's claim, and it stays unique even if a server that lost its last
writes counts the same epoch twice.

Leases also expire while the server is unreachable, which is not their holders' fault. Therefore the reapers leave their
mark: each look writes the time to `sharecap:alive`. A look that finds the previous mark too old concludes that the
server was unreachable, and for the length of a lease no reaper takes a job, so that every holder can renew.
"""

from service.contract.jobs import JobStatus
from service.contract.store.keys import STORED_PREFIX

JOB_OVERHEAD_BYTES, EVENT_OVERHEAD_BYTES = 6000, 100
"""What a job and an event occupy in Redis besides their JSON text: field names, index entries, the server's blocks.

Measured: `tests/service/intake/test_memory.py` compares the counted bytes with those that the server reports.
"""

CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""Defines `now`, the server's time in ms."""

UNFINISHED = f"""
local function unfinished(status)
  return {" or ".join(f"status == '{status}'" for status in JobStatus if not status.ended)}
end
"""
"""Defines `unfinished(status)`: whether a job with this status can still change."""

_START = CLOCK + UNFINISHED

_AFTER_OUTAGE = """
local function after_outage(leases, alive, outage_ms, lease_ms)
  if redis.call('ZCARD', leases) == 0 then return false end
  local seen, back = unpack(redis.call('HMGET', alive, 'seen', 'back'))
  if seen and now - seen > tonumber(outage_ms) then
    back = now
    redis.call('HSET', alive, 'back', back)
  end
  if not seen or math.abs(now - seen) >= 500 then redis.call('HSET', alive, 'seen', now) end
  return back and now < back + lease_ms
end
"""
"""Defines `after_outage`: whether the server was unreachable less than `lease_ms` ago. Marks this look in `alive`.

An outage is a time of more than `outage_ms` without a look. Without leases there is nothing to protect, so an idle
service writes no marks; the claim of the first lease writes the first one.
"""

# KEYS job, in each script that uses it.
_COUNT_BYTES = (
    f"local STORED = '{STORED_PREFIX}'"
    + """
local function count_bytes()
  local owner, bytes, counted = unpack(redis.call('HMGET', KEYS[1], 'owner', 'bytes', 'counted'))
  if not bytes or not owner or owner == '' then return end
  redis.call('HSET', KEYS[1], 'counted', bytes)
  redis.call('INCRBY', STORED .. owner, bytes - (counted or 0))
end
"""
)
"""Defines `count_bytes()`: adds to the owner's total what the job's record and events occupy now."""

# KEYS job events leases queued, in each script that uses it.
_WRITE = (
    _COUNT_BYTES
    + f"local OVERHEAD = {EVENT_OVERHEAD_BYTES}"
    + """
local function newest()
  local row = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  return row and tonumber(string.match(row[1], '^(%d+)')) or 0  -- 0: the stream was lost
end
local function write(seq, kind, data)
  redis.call('XADD', KEYS[2], seq .. '-0', 'type', kind, 'data', data, 'at', now)
  redis.call('HINCRBY', KEYS[1], 'bytes', #data + OVERHEAD)
end
local function close(id, status)
  redis.call('HSET', KEYS[1], 'status', status)
  redis.call('HDEL', KEYS[1], 'until')
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  count_bytes()
end
local function finish(id, status, kind, data)
  write(newest() + 1, kind, data)
  redis.call('HDEL', KEYS[1], 'holder')
  close(id, status)
end
"""
)

# KEYS job events jobs queued, a key that stops expiring, turns, then any number of zsets that receive the job's id;
# ARGV id record kind type data owner, deadline_ms from now or '', queue, bytes that the job occupies, and parent or ''.
# Returns 1, or 0 if another job has the id.
CREATE = (
    _START
    + _COUNT_BYTES
    + """
local known = redis.call('HGET', KEYS[1], 'record')
if known then return known == ARGV[2] and 1 or 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'kind', ARGV[3], 'status', 'queued', 'epoch', 0, 'owner', ARGV[6])
redis.call('XADD', KEYS[2], '1-0', 'type', ARGV[4], 'data', ARGV[5], 'at', now)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'deadline', now + ARGV[7]) end
redis.call('HSET', KEYS[1], 'queue', ARGV[8], 'bytes', ARGV[9])
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'parent', ARGV[10]) end
redis.call('PERSIST', KEYS[5])
redis.call('ZADD', KEYS[6], 'NX', now, ARGV[6])
for i = 7, #KEYS do redis.call('ZADD', KEYS[i], now, ARGV[1]) end
count_bytes()
return 1
"""
)

# KEYS job events clips stored turns line, then other zsets that contain the job's id; ARGV id owner. Deletes the job.
DELETE = """
local counted = redis.call('HGET', KEYS[1], 'counted')
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])  -- first: a server without memory then allows the rest
if counted and redis.call('DECRBY', KEYS[4], counted) <= 0 then redis.call('DEL', KEYS[4]) end
for i = 6, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
if redis.call('EXISTS', KEYS[6]) == 0 then redis.call('ZREM', KEYS[5], ARGV[2]) end
"""

# KEYS job leases queued alive; ARGV id token lease_ms. Returns the epoch, or 0 if the job cannot be claimed.
CLAIM = (
    _START
    + """
local status, holder, epoch = unpack(redis.call('HMGET', KEYS[1], 'status', 'holder', 'epoch'))
if not unfinished(status) then return 0 end
if holder and holder ~= ARGV[2] then return 0 end
if not holder then epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1) end
if redis.call('ZCARD', KEYS[2]) == 0 then redis.call('HSET', KEYS[4], 'seen', now) end
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'until', now + ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return tonumber(epoch)
"""
)

# KEYS job leases; ARGV id token lease_ms. Returns 1 renewed, 2 renewed and cancellation requested, 0 lost.
RENEW = (
    _START
    + """
local holder, status, cancel = unpack(redis.call('HMGET', KEYS[1], 'holder', 'status', 'cancel'))
if holder ~= ARGV[2] or not unfinished(status) then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return cancel and 2 or 1
"""
)

# KEYS job leases queued; ARGV id token fault, limit. Returns an unfinished job to the queue; the caller sends the
# wake-up. `fault`: '', or the field that counts the faults of this kind. Returns 1 released, 0 lease lost, 2 if the
# count would reach its limit: nothing has changed.
RELEASE = (
    _START
    + """
local holder, status = unpack(redis.call('HMGET', KEYS[1], 'holder', 'status'))
if holder ~= ARGV[2] or not unfinished(status) then return 0 end
if ARGV[3] ~= '' then
  local count = tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or 0) + 1
  if count >= tonumber(ARGV[4]) then return 2 end
  redis.call('HSET', KEYS[1], ARGV[3], count)
end
redis.call('HDEL', KEYS[1], 'holder', 'until')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
return 1
"""
)

# KEYS job events leases queued; ARGV id token seq type data status ended('1' or '') progress('1' or '').
# Returns OK, CANCEL (written, and cancellation was requested), DUP, GAP or FENCED.
APPEND = (
    _START
    + _WRITE
    + """
local holder, status, cancel = unpack(redis.call('HMGET', KEYS[1], 'holder', 'status', 'cancel'))
if holder ~= ARGV[2] then return 'FENCED' end
local seq, place = newest(), tonumber(ARGV[3])
if place <= seq then return 'DUP' end
if not unfinished(status) then return 'FENCED' end
if place ~= seq + 1 then return 'GAP' end
write(place, ARGV[4], ARGV[5])
if ARGV[8] ~= '' then redis.call('HDEL', KEYS[1], 'strikes', 'stalls') end
if ARGV[7] ~= '' then close(ARGV[1], ARGV[6])
elseif ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'status', ARGV[6]) end
return cancel and 'CANCEL' or 'OK'
"""
)

# KEYS job events leases queued; ARGV id type data. Ends a job at once, or requests cancellation if a worker is running
# it under a valid lease. Returns the resulting status, or nothing for an unknown job.
CANCEL = (
    _START
    + _WRITE
    + """
local status, till = unpack(redis.call('HMGET', KEYS[1], 'status', 'until'))
if not unfinished(status) then return status end
if status == 'running' and till and tonumber(till) > now then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  return status
end
finish(ARGV[1], 'cancelled', ARGV[2], ARGV[3])
return 'cancelled'
"""
)

# KEYS leases queued alive; ARGV rewake_ms max_leased max_queued outage_ms lease_ms. Returns ids of jobs that REAP must
# check: first those with an expired lease, unless the server was unreachable just now, then queued ones, each group
# longest overdue first.
DUE = (
    _START
    + _AFTER_OUTAGE
    + """
local due = {}
if not after_outage(KEYS[1], KEYS[3], ARGV[4], ARGV[5]) then
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1], 'LIMIT', 0, ARGV[3])) do
  due[#due + 1] = id
end
return due
"""
)

# KEYS job events leases queued alive; ARGV id rewake_ms max_strikes failed_type failed_data cancelled_type
# cancelled_data late_data outage_ms lease_ms. Takes the job from a holder whose lease has expired, unless the server
# was unreachable just now; that counts as a strike. Ends the job if this was its last strike or if cancellation was
# requested. Also ends a job that no worker holds at its deadline. Returns the status, queue and epoch of a job that
# ended or needs a wake-up; nothing if there is nothing to do, or another reaper has just done it.
REAP = (
    _START
    + _WRITE
    + _AFTER_OUTAGE
    + """
local status, kind, queue, epoch, holder, till, cancel, deadline =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'kind', 'queue', 'epoch', 'holder', 'until', 'cancel', 'deadline'))
queue = queue or kind
local late = deadline and tonumber(deadline) <= now
local protected = after_outage(KEYS[3], KEYS[5], ARGV[9], ARGV[10])
if not unfinished(status) then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
  return nil
end
if holder then
  if tonumber(till) > now then
    redis.call('ZADD', KEYS[3], till, ARGV[1])
    redis.call('ZREM', KEYS[4], ARGV[1])
    return nil
  end
  if protected then return nil end
  if cancel then
    finish(ARGV[1], 'cancelled', ARGV[6], ARGV[7])
    return {'cancelled', queue, epoch}
  end
  if not late and redis.call('HINCRBY', KEYS[1], 'strikes', 1) >= tonumber(ARGV[3]) then
    finish(ARGV[1], 'failed', ARGV[4], ARGV[5])
    return {'failed', queue, epoch}
  end
  redis.call('HDEL', KEYS[1], 'holder', 'until')
elseif not late then
  local woken = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if woken and tonumber(woken) > now - ARGV[2] then return nil end
end
if late then
  finish(ARGV[1], 'failed', ARGV[4], ARGV[8])
  return {'failed', queue, epoch}
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
return {status, queue, epoch}
"""
)
