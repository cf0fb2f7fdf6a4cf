"""Parameters that several routes have, with their descriptions and examples in the API's documentation."""

from typing import Annotated

from fastapi import Path, Query

JobId = Annotated[
    str,
    Path(
        description="The job's id: `cap_` and 32 hexadecimal digits. Other values are answered with `not_found`.",
        examples=["cap_350983ceec46b85aaa0190684208e8d2"],
    ),
]
Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of jobs on the page.", examples=[50])]
Cursor = Annotated[
    str | None,
    Query(
        description="The `cursor` of the previous page, at most 64 characters. Default: the first page.",
        examples=["1763740800000-cap_350983ceec46b85aaa0190684208e8d2"],
    ),
]
