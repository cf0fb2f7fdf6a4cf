"""A route that does only what `POST /captions` cannot leave out: `python bench/bare_route.py PORT FOLDER REDIS_URL`.

`gateway.py` compares both. The body goes to a file, the file and its directory are synced, and Redis gets one record.
"""

import asyncio
import io
import json
import os
import sys
from pathlib import Path
from uuid import uuid4

import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def application(directory: Path, redis: Redis) -> Starlette:
    async def receive(request: Request) -> JSONResponse:
        name = uuid4().hex
        path = directory / f"{name}.part"
        file = path.open("xb")
        async for chunk in request.stream():
            file.write(chunk)
        await asyncio.to_thread(sync, file, path)
        await redis.hset(f"bare:{name}", "record", json.dumps({"id": name}))  # type: ignore[misc]
        return JSONResponse({"id": name}, 202)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({})

    return Starlette(routes=[Route("/captions", receive, methods=["POST"]), Route("/healthz", health)])


def sync(file: io.BufferedWriter, path: Path) -> None:
    """Sync and close the file, give it its final name, and sync its directory."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    path.rename(path.with_suffix(""))
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


if __name__ == "__main__":
    port, folder, redis_url = sys.argv[1:]
    uvicorn.run(application(Path(folder), Redis.from_url(redis_url)), port=int(port), log_level="info")
