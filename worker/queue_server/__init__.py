"""The embedded queue: the Cronium app's queue API over one SQLite file.

What it has beyond the app, and the worker uses where it is offered:

- polls are held (RFC 7240, `Prefer: wait=25`), and say so (`Preference-Applied`);
- the heartbeat's answer names the jobs that were cancelled (`cancelledJobs`);
- claims are leases, renewed by heartbeats: a job whose lease is over is handed out again, with the
  same `attempts`;
- `executions/{id}/update` never ends a job, a second `complete` changes nothing, and `running` does
  not revive a job that was cancelled;
- each job of a claim has a `claimToken`. What is said of the job with it as `X-Claim-Token`
  counts only as long as the job is under that claim, and is a 403 afterwards: `status`, `complete`,
  `fail`, and `executions` below the job, which creates and updates rows. The others may have such
  rows along as `executions`. Each takes effect as a whole or not at all;
- a job of a claim that no worker has had before says so (`mayHaveBegun` is false): its worker may
  start it at once, and tell that it runs meanwhile, or of its end alone where that is soon;
- an error's `details` say what was wrong with a body.
"""
