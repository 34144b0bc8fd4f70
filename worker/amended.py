"""A job's final report, changed where the API would not take it as it stands."""

import msgspec

from worker.state.outbox import Entry, Kind


def shortened(entry: Entry) -> Entry | None:
    """A `complete` without the middle half of its output; None when nothing is left to leave out.

    The scripts' own output (`scriptOutput`) goes last, and as a whole.
    """
    if entry.kind is not Kind.COMPLETE:
        return None
    body = msgspec.json.decode(entry.body)
    output = body["output"]
    if not any(output.values()):
        if body.get("scriptOutput") is None:
            return None
        body["scriptOutput"] = None
        output["stdout"] = "[cronium] script output left out, too large for the way to the API\n"
        return Entry(entry.job_id, entry.kind, entry.subject, msgspec.json.encode(body))
    for stream, text in output.items():
        quarter = len(text) // 4
        dropped = f"\n[cronium] ... {len(text) - 2 * quarter} characters left out ...\n"
        output[stream] = text[:quarter] + dropped + text[-quarter:] if quarter > 100 else ""
    return Entry(entry.job_id, entry.kind, entry.subject, msgspec.json.encode(body))


def as_cancelled(entry: Entry) -> Entry:
    """A job that was cancelled meanwhile is completed as cancelled, with the output there is."""
    body = msgspec.json.decode(entry.body)
    body["status"] = "cancelled"
    return Entry(entry.job_id, entry.kind, entry.subject, msgspec.json.encode(body))
