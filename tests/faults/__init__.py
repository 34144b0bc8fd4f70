"""Faults between a worker and its surroundings, for synchronous tests.

    with open_background() as background:            a Trio loop in a thread of its own
        line = TcpProxy(background, (host, port))    between the worker and an sshd
        port = serve_queue(background, database)     the embedded queue, in that thread
        api = ApiProxy(background, port)             between the worker and the queue
    gate = Gate(folder)                              in an sshd, as its login_shell: gate.shell

    TcpProxy     .port  .accepted  .open  .passed[Way]  .is_stalled
                 .cut()  .stall()  .stall_after(n, Way)  .mute(Way)  .refuse()  .heal()
    ApiProxy     .port  .calls  .accepted(route)
                 .hold(route)  .hold_answer(route)  .fail(Failure)  .heal()
    Hold         .wait_reached()  .release()
    Call         .route  .subject  .body  .status (None until the queue has answered)
    Gate         .shell  .seen(verb)  .hold(verb)  .release(verb)

A route is the last word of its path, and `claim`. A hold stops the first such call that comes, and
what is made to fail meanwhile fails when the hold is released. A gate stops every such call.

    with open_scene(folder) as scene:                one job, a worker and all of the above
        ...
    violations(scene, started=True)                  what is wrong after the job's end
"""
