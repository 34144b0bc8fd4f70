"""Jobs on real servers while everything around two workers is killed and cut at random.

What is submitted and what strikes when follows from the seed alone; when processes get to what
they do does not, so a seed that has found something may need several runs to find it again.

    schedule   from a seed to the jobs and the faults of a run
    shapes     scripts, and every byte that each prints
    stage      the queue, the servers, the proxies between, and the workers' seats
    faults     what can strike, and how it passes
    told       what the queue was told of a job, held against what its script printed
    audit      the four facts at the end
    run        the run itself, from the first job to the verdict
"""
