"""Options of jobs, as keyword arguments of the client and as flags of `sharecap caption`, `recaption` and `clip`.

Each option has its type and its help text here, and nowhere else in this package. The service checks the values, so
its limits are not repeated. A test compares names and types with the service's OpenAPI document.
"""

from typing import Annotated, Literal

from typing_extensions import Doc, TypedDict


class JobOptions(TypedDict, total=False):
    """Options of every job."""

    max_tokens: Annotated[int, Doc("Maximum length of each text in tokens.")]
    temperature: Annotated[float, Doc("0 always chooses the most likely token; higher values vary the text.")]
    num_beams: Annotated[int, Doc("Number of beams of the beam search; 1 generates without a search.")]
    seed: Annotated[int, Doc("Seed of the random choices if the temperature is not 0.")]
    deadline_s: Annotated[float, Doc("The job fails if it has not ended after this many seconds.")]
    webhook_url: Annotated[str, Doc("URL that receives a signed request when the job has ended.")]
    metadata: Annotated[dict[str, str], Doc("Pairs of strings that are stored and returned with the job.")]


class VideoOptions(JobOptions, total=False):
    """Options of jobs that caption a video."""

    mode: Annotated[
        Literal["sliding", "fast"],
        Doc("sliding: a caption of what changed at each keyframe, then a summary; fast: one caption for the video."),
    ]
    keyframes: Annotated[
        Literal["semantic", "interval"],
        Doc("semantic: sampled frames that differ enough; interval: all sampled frames."),
    ]
    interval_s: Annotated[float, Doc("Sampling interval in seconds.")]
    similarity_threshold: Annotated[float, Doc("A sampled frame below this similarity becomes a keyframe.")]
    max_keyframes: Annotated[int, Doc("Maximum number of keyframes; the sampling interval grows if necessary.")]
    start_s: Annotated[float, Doc("Start of the part to caption, in seconds.")]
    end_s: Annotated[float, Doc("End of the part to caption, in seconds.")]
    hd_num: Annotated[int, Doc("Maximum number of high-resolution crops per image.")]
    parallel: Annotated[bool, Doc("Caption the shots of the video independently and at the same time.")]
    cut_threshold: Annotated[float, Doc("With parallel: a keyframe below this similarity starts a new shot.")]
    keep_video: Annotated[bool, Doc("Keep the uploaded video as long as the job, so that the web page can play it.")]
