"""`deadline_s` over HTTP: the server's maximum is the upper bound and the default."""

from pathlib import Path

from tests.service.scripted import Serve

NO_WAIT = {"Prefer": "wait=0"}


async def test_the_maximum_is_the_default_and_the_upper_bound(serve: Serve) -> None:
    async with serve(max_deadline_s=100) as gateway:
        for requested, effective in ((None, 100), (7.5, 7.5), (100, 100)):
            body = {"prompt": "A fox"} | ({} if requested is None else {"deadline_s": requested})
            answer = await gateway.client.post("/recaption", json=body, headers=NO_WAIT)
            assert answer.status_code == 202
            assert answer.json()["options"]["deadline_s"] == effective
        for invalid in (101, 0, -1, "soon"):
            body = {"prompt": "A fox", "deadline_s": invalid}
            answer = await gateway.client.post("/recaption", json=body, headers=NO_WAIT)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
            assert answer.json()["detail"].startswith("deadline_s: ")


async def test_a_video_with_an_invalid_deadline_is_not_stored(serve: Serve, clip: Path) -> None:
    async with serve(max_deadline_s=100) as gateway:
        answer = await gateway.post_video(clip, deadline_s="101")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
        assert gateway.files == []
