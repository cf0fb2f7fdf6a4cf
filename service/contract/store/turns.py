"""Turns: which waiting job a wake-up starts. API keys take turns, so that one key's jobs do not delay another's.

A new job waits in its key's *line* until its first claim; there is a line for each key and queue. A wake-up does not
start the job that it names, but a job of the key whose latest turn in the queue is longest ago. There are as many
wake-ups as jobs, so each job gets its turn. Jobs that were claimed before and given back are not in a line: their
wake-ups start exactly them.

If a worker has no room for a job of any waiting key, the job stays in its line, and its wake-up is used up. Therefore
workers also look for jobs that have waited for `REWAKE_AFTER_S`, without a wake-up. A line may still contain jobs that
have ended; they are dropped when their turn comes.
"""

import json
from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from service.contract.jobs import JobKind, Record
from service.contract.store.keys import JOB_PREFIX, LINE_PREFIX, QUEUED, TURNS_PREFIX
from service.contract.store.leases import REWAKE_AFTER_S
from service.contract.store.scripts import CLOCK, UNFINISHED

FETCH = "fetch"
"""The queue of new videos that a worker downloads first. All other queues are named after the kind of their jobs."""
PARKED_S = 30.0
"""How long reapers do not repeat the wake-up of a job that a worker had no room for."""

# KEYS queued; ARGV: id of the job that was woken or '', shortest_wait_ms, parked_ms, and a JSON array of pairs: the
# name of a queue that the worker has room for, and an array of owners that it has no room for. Without a woken job,
# only jobs that have waited for `shortest_wait_ms` are considered. Returns the id of the job to claim, or nothing.
NEXT_JOB = (
    CLOCK
    + UNFINISHED
    + f"local JOB, LINE, TURNS = '{JOB_PREFIX}', '{LINE_PREFIX}', '{TURNS_PREFIX}'"
    + """
local woken, shortest_wait, rooms = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[4])
local function line_of(queue, owner) return LINE .. queue .. ':' .. owner end
local function look_up(id)
  local status, holder, epoch, queue, owner =
    unpack(redis.call('HMGET', JOB .. id, 'status', 'holder', 'epoch', 'queue', 'owner'))
  local claimable = unfinished(status) and not holder
  return claimable, claimable and epoch == '0', queue, owner
end
local in_line, woken_queue, woken_owner = false, nil, nil
if woken ~= '' then
  local claimable, new, queue, owner = look_up(woken)
  in_line = new and queue and owner and redis.call('ZSCORE', line_of(queue, owner), woken)
  if claimable and not in_line then return woken end
  woken_queue, woken_owner, shortest_wait = queue, owner, 0
end
local function first_of(queue, owner)
  if in_line and queue == woken_queue and owner == woken_owner then return woken end
  local line = line_of(queue, owner)
  local id, since = unpack(redis.call('ZRANGE', line, 0, 0, 'WITHSCORES'))
  while id do
    local _, new = look_up(id)
    if new then return now - since >= shortest_wait and id or nil end
    redis.call('ZREM', line, id)
    id, since = unpack(redis.call('ZRANGE', line, 0, 0, 'WITHSCORES'))
  end
  redis.call('ZREM', TURNS .. queue, owner)
end
local function end_turn(queue, owner, id)
  local turns, line = TURNS .. queue, line_of(queue, owner)
  local last = redis.call('ZREVRANGE', turns, 0, 0, 'WITHSCORES')[2]
  redis.call('ZREM', line, id)
  if redis.call('EXISTS', line) == 0 then redis.call('ZREM', turns, owner)
  else redis.call('ZADD', turns, math.max(now, last + 1), owner) end
end
for _, room in ipairs(rooms) do
  local queue, full = room[1], {}
  for _, owner in ipairs(room[2]) do full[owner] = true end
  if not woken_queue or queue == woken_queue then
    for _, owner in ipairs(redis.call('ZRANGE', TURNS .. queue, 0, -1)) do
      local id = not full[owner] and first_of(queue, owner)
      if id then
        end_turn(queue, owner, id)
        return id
      end
    end
  end
end
if in_line then redis.call('ZADD', KEYS[1], 'XX', now + ARGV[3], woken) end
return nil
"""
)


def queue_of(record: Record) -> str:
    """Return the name of the queue that a new job waits in."""
    has_url = record.source is not None and record.source.url is not None
    return FETCH if record.kind is JobKind.VIDEO and has_url else record.kind.value


class Turns:
    """The part of the store that gives workers the next job in turn."""

    def __init__(self, redis: Redis) -> None:
        self._next_job = redis.register_script(NEXT_JOB)

    async def next_job(self, room: Mapping[str, Sequence[str]], woken: str = "") -> str | None:
        """Return the id of the job to claim, and end its waiting; None if there is none that the worker has room for.

        `room` maps each queue that the worker has room for to the keys that it has no room for. `woken` is the job that
        a wake-up names; without it, only jobs that have waited for `REWAKE_AFTER_S` are returned.
        """
        rooms = json.dumps([[queue, list(full)] for queue, full in room.items()])
        args: list[str | int] = [woken, int(REWAKE_AFTER_S * 1000), int(PARKED_S * 1000), rooms]
        job_id: str | None = await self._next_job(keys=[QUEUED], args=args)
        return job_id
