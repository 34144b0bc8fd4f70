#!/bin/sh
# Runs scripts on this server, apart from any connection; every verb is described in the runner protocol.
# In this order: what all of it stands on, the supervisor, the calls, and the janitor.
# A run is claimed by a file, runs/ID, that names its room, rooms/TOKEN, with all else of it: to make a directory is a
# program, and a room can be made before anybody knows whose it will be.
# shellcheck disable=SC3067  # test -O: not in POSIX, but in every shell this must run under
# shellcheck disable=SC2015  # A && B || C: every B here is a test
# shellcheck disable=SC2329  # functions that the ticker alone calls, which is started by eval
# shellcheck disable=SC2013,SC2044  # words of grep and find: numbers, or names that take_path checks

protocol=1
grace_ms=5000
# Each takes 50 ms or more: a process that cannot be killed (another user's, or stuck in the kernel) holds us up no
# longer than these.
max_looks=200
# The time of day may not be set right after a boot, and the janitor goes by it.
settle_s=3600
# Each costs a fork and a start of dd, some ms; the worker refuses frames over 1 MiB.
piece=1048576
# Of a stream, that a shell reads byte by byte: less than a start of dd takes.
most_text=1024
# What a script asks for in one call: with its header it fits into the worker's 1 MiB.
call_limit=1047552
# Told and not yet answered. The worker does 8 at once, and each look goes through all of them.
most_calls=100
helper_files='cronium.bash asking.bash python/cronium.py python/sitecustomize.py node_modules/cronium/index.js'
newline='
'
# Runs that one call serves: a shell may remember every child that it had.
most_served=1000
# Ended runs of a call whose payloads may still be on the disk: they are removed together.
most_owed=8
# Made together, as each time is a program.
rooms_at_once=8

name_artifact() {
    artifact=${1##*/runner-}
    case $artifact in *[!0-9a-f]*) artifact=000000000000 ;; esac
    [ ${#artifact} -eq 12 ] || artifact=000000000000
    helpers=${1%/*}/helpers-$artifact
}

is_ours() {
    [ ! -h "$1" ] && [ -d "$1" ] && [ -O "$1" ]
}

# A script may have taken away our right to search what is ours.
make_searchable() {
    for path in "$@"; do
        [ -x "$path" ] || ! is_ours "$path" || chmod u+rwx "$path"
    done 2>/dev/null
    return 0
}

is_forgotten() {
    for tomb in $roots; do
        [ -e "$tomb/forgotten/$id" ] && is_ours "$tomb" && return 0
    done
    return 1
}

# Sets state_of, group_of, started: the start time tells a process from a later one with its pid.
identify() {
    state_of='' group_of='' started=''
    if [ -r /proc/self/stat ]; then
        stat=''
        # The name before the last ") " may hold anything, newlines too.
        { while IFS= read -r line; do stat=$line; done <"/proc/$1/stat"; } 2>/dev/null
        # From the end it takes a shell as long as all else here; few names have that in them.
        rest=${stat#*') '}
        case $rest in *')'*) rest=${stat##*') '} ;; esac
        # shellcheck disable=SC2086  # numbers, to be split
        set -- $rest
        [ -n "${20-}" ] || return 1
        state_of=$1 group_of=$3 started=${20}
    else
        # shellcheck disable=SC2046  # fields, to be split
        set -- $(ps -o state= -o pgid= -o lstart= -p "$1" 2>/dev/null)
        [ $# -ge 7 ] || return 1
        state_of=$1 group_of=$2 started=$3$4$5$6$7
    fi
    case $state_of in [ZX]*) return 1 ;; esac
}

is_process() {
    identify "$1" && [ "$started" = "$2" ]
}

# By fd $1: a directory of /proc is of that process alone, whoever has its number later.
pin() {
    { eval "exec $1<&-" && eval "command exec $1</proc/$2"; } 2>/dev/null
}

# Whether what fd $1 pins lives, where we may know: to read who it is takes a shell a call for each byte.
is_pinned() {
    [ -e "/proc/self/fd/$1/exe" ]
}

# Sets target.
read_link() {
    target=$(ls -ld "$1" 2>/dev/null)
    case $target in *' -> '*) target=${target##* -> } ;; *) target='' ;; esac
}

# Sets record to how the run in directory $1, or here, has ended. Forks nothing.
find_record() {
    for entry in "${1:-.}"/exit.*; do
        record=${entry##*/exit.}
        ! is_record || return 0
    done
    record=''
    # As former artifacts made it. Without a return, which yash forgets where a signal comes just then.
    if [ -h "${1:-.}/exit" ]; then
        read_link "${1:-.}/exit"
        record=$target
    fi
    is_record
}

is_record() {
    case $record in
    *[!a-z0-9._]* | *.*.*.*.*) return 1 ;;
    [0-9]*.[a-z]*.[0-9]*.[0-9]*) ;;
    *) return 1 ;;
    esac
}

# Sets clock_s and clock_ms (0 to 999). Uptime, because the time of day may jump.
read_clock() {
    uptime=''
    { read -r uptime rest </proc/uptime; } 2>/dev/null
    case $uptime in
    *.??) clock_s=${uptime%.*} clock_ms=$((1${uptime#*.}0 - 1000)) ;;
    *) read_date ;;
    esac
}

# Where there is no uptime. Whoever waits looks once a second: what is no such step is a jump, and counts
# as one.
read_date() {
    uptime='' now_s=$(date +%s) clock_ms=0
    step=$((now_s - ${last_s:-$now_s})) last_s=$now_s
    if [ "$step" -lt 0 ] || [ "$step" -gt 5 ]; then jumped_s=$((jumped_s + step - 1)); fi
    clock_s=$((now_s - jumped_s))
}
jumped_s=0

# Sets elapsed, in ms, since clock readings $1 and $2; kept small, as mksh counts in 32 bits.
measure_since() {
    read_clock
    elapsed=$(((clock_s - $1) * 1000 + clock_ms - $2))
    [ "$elapsed" -ge 0 ] || elapsed=0
}

nap() {
    nap_ms=50
    # Not every sleep takes fractions.
    sleep 0.05 2>/dev/null || {
        nap_ms=1000
        sleep 1
    }
}

# Sets found to the path of $1, without a fork.
find_program() {
    old_ifs=$IFS IFS=:
    for found in ${PATH-}; do
        found=$found/$1
        case $found in *[!A-Za-z0-9._/-]*) continue ;; /*) [ -f "$found" ] && [ -x "$found" ] && break ;; esac
        found=''
    done
    IFS=$old_ifs
    [ -n "$found" ]
}

# Opens a pipe: fd $1 to write to, fd $2 to read from. Fd $1 is open for reading too, so that nobody is ended by
# SIGPIPE for writing to a reader that is gone. Most shells make a pipe for a short here-document, and Linux lets
# it be opened once more: this takes no program.
open_pipe() {
    {
        IFS= read -r rest <&4
        # Without the word, a shell ends that cannot open them.
        [ -p /proc/self/fd/4 ] && eval "command exec $1<>/proc/self/fd/4 $2</proc/self/fd/4"
    } 2>/dev/null 4<<end || open_named_pipe "$@"
full
end
}

open_named_pipe() {
    for place in $roots; do
        pipe=$place/.pipe.$$.$nonce
        is_ours "$place" && mkfifo "$pipe" || continue
        eval "command exec $1<>$pipe $2<$pipe" && rm -f "$pipe" && return
        rm -f "$pipe"
    done 2>/dev/null
    return 1
}

# The supervisor: starts the runs of one call, one after the other, and outlives the call with its last. As much as
# possible is done before an order comes, since all that follows one delays the script's first instruction. Orders
# come on fd 0, verdicts go to fd 3; 7 and 5 are the ends of the pipe to the process that becomes the script, 8 and
# 9 those of the pipe to the ticker; 4 and 6 pin the one and the other.

supervise() {
    nonce=$2 nests=$3 cgroup=$4 is_ahead=$5
    shift 5
    # What its starter has found out already.
    mask=$1 lent_locale=$2 boot=$3 host=$4 roots=$5 detacher=$6
    exec 3>&1 >/dev/null
    identify $$
    supervisor_started=$started root=${0%/*} id=''
    find_reset
    prepare_script
    while read -r order; do
        # shellcheck disable=SC2086  # words, to be split
        set -- $order
        root=$1 id=$2 token=$3 limit_s=$4 was_claimed=''
        run=$root/rooms/$token claim=$root/runs/$id
        # The wait for this is no jump of the clock.
        last_s=''
        [ -n "$script_pid" ] || prepare_script
        read -r interpreter output_limit || {
            # The call has ended before all of the payload came.
            drop_room
            break
        }
        is_ready || prepare_script || break
        # Without one nothing would hold its limits.
        prepare_ticker || break
        # Between two runs they may end us; now they end a wait, and no more.
        trap '' HUP TERM URG
        serve_run
        [ -z "$was_claimed" ] || ! is_gone || leave_tomb
        cd /
        trap - HUP TERM URG
        # Most calls serve one run, and one that waits for a second may wait for long.
        [ "$starts" -eq 1 ] || is_ahead=1
        [ -z "$is_ahead" ] || is_ready || prepare_script
    done
    drop_owed
    exec 7>&- 8>&- </dev/null
    # A script may have stopped it.
    [ -z "$script_pid" ] || { kill -s CONT "$script_pid"; wait "$script_pid"; }
    # With those of one before us that was killed.
    set -- ${nests:+"$nests"-*}
    left=$*
    drop_left
    for cgroup in $left; do leave_cgroup; done
    [ -z "$id" ] || sweep_daily
    exit 0
}
starts=0 spent=0 waits='' script_pid=''

is_ready() {
    [ -n "$script_pid" ] && { is_pinned 4 || is_process "$script_pid" "$script_started"; }
}

# Starts what becomes the script, and enters its cgroup now: that takes an RCU grace period, 10 ms and more.
prepare_script() {
    # Another pipe each time, in which nothing is left that was for another.
    open_pipe 7 5 || return
    [ -z "$nests" ] || take_cgroup
    starts=$((starts + 1))
    become_script &
    script_pid=$!
    pin 4 "$script_pid"
    identify "$script_pid"
    script_started=$started
}

# Sets cgroup to one that no script has been in. Several are made and removed at once, as each time is a
# program; at first only one.
take_cgroup() {
    [ -z "$cgroup" ] || return
    if [ -z "$made" ]; then
        drop_left
        while [ "$lot" -gt 0 ]; do
            cgroups=$((cgroups + 1)) lot=$((lot - 1))
            made="$made $nests-$$-$cgroups"
        done
        lot=8
        # shellcheck disable=SC2086  # paths, to be split
        mkdir $made 2>/dev/null
    fi
    made=${made# }
    cgroup=${made%% *}
    made=${made#"$cgroup"}
    # It is no reason to fail.
    [ -d "$cgroup" ] || cgroup=''
}
made='' left='' cgroups=0 lot=1

# Those of former scripts; where one was left with something in it, it stays.
drop_left() {
    # shellcheck disable=SC2086  # paths, to be split
    case $left in *cronium-*) rmdir $left 2>/dev/null ;; esac
    once=$left left=''
    for path in $once; do
        [ ! -d "$path" ] || left="$left $path"
    done
}

serve_run() {
    cd "$run" 2>/dev/null || {
        echo gone >&3
        return
    }
    claim || {
        drop_room
        echo "$verdict" >&3
        return
    }
    was_claimed=1
    echo "$run $id $interpreter" >&7
    echo "new $$ $supervisor_started" >&3
    start_ticker
    watch
    finish
}

# The claim is gone, perhaps with all that we have there, and the run is not to be started again.
leave_tomb() {
    is_forgotten && return
    read_clock
    for tomb in "$root" $roots; do
        { [ -d "$tomb/forgotten" ] || mkdir -p "$tomb/forgotten"; } && is_ours "$tomb" &&
            { echo "$boot $clock_s" >"$tomb/forgotten/$id"; } && return
    done 2>/dev/null
}

# One ticker for all runs, as each of them would take a process, and a program for it to sleep by.
prepare_ticker() {
    has_ticker && return
    ticker=''
    open_pipe 8 9
}

start_ticker() {
    [ -n "$ticker" ] || {
        # Without the word, some shells end that can have no more processes for a while.
        command eval 'tick & ticker=$!' 2>/dev/null
        # And there the ticker comes to, should it be the one that can have none.
        [ -z "$is_ticker" ] || exit
        pin 6 "${ticker:-none}"
        identify "${ticker:-none}"
        ticker_started=$started
        exec 9<&-
    }
    echo "$run $claim $script_pid $script_started $limit_s $output_limit $began_s $began_ms" >&8
}

# We were woken for no reason: by the end of our ticker, or by what may be the end of it. Where there is no
# uptime it wakes us each second.
renew_ticker() {
    if has_ticker; then
        [ -n "$uptime" ] || return
        # Not waited for: bash may have lost its end, and would wait for the script's.
        kill -s KILL "$ticker"
    fi
    ticker=''
    prepare_ticker && start_ticker
}

has_ticker() {
    [ -n "$ticker" ] && { is_pinned 6 || is_process "$ticker" "$ticker_started"; }
}
ticker='' is_ticker=''

# For each run: wakes its starter once, by a line among the verdicts, and us when the run is to be ended.
tick() {
    is_ticker=1
    exec 0<&9 4<&- 5<&- 6<&- 7>&- 8>&- 9<&-
    trap '' URG
    # Should we end early, as where no more processes can be had: the starter is not to wait for our word, and
    # the supervisor is to notice.
    trap 'echo tick >&3; kill -URG $$' EXIT
    trap exit HUP TERM
    while read -r run claim script_pid script_started limit_s output_limit began_s began_ms; do
        id=${claim##*/}
        # The script may have deleted it by now: then that is what we have to report.
        cd "$run" 2>/dev/null || cd /
        last_s='' overdue=0
        is_at_end || {
            rest 0.1
            is_at_end || echo tick >&3
        }
        until is_at_end; do
            rest 1
            # It may have been killed, to end the wait; but where sleep itself fails we cannot go on.
            [ "$rested" -eq 0 ] || [ "$rested" -gt 128 ] || exit
            is_at_end || is_process $$ "$supervisor_started" || exit
            # Its script may have stopped it.
            case $state_of in T*) kill -s CONT $$ ;; esac
            is_at_end || ! { is_to_be_woken || is_overdue; } || kill -URG $$
        done
        cd /
    done
}

# Sleeps $1 s at most: the end of a run that took longer than a moment wakes us.
rest() {
    sleep "$1" 3>&- &
    sleeper=$!
    trap 'kill "$sleeper"' URG
    rested=0
    if is_at_end; then kill "$sleeper"; else wait "$sleeper" || rested=$?; fi
    trap '' URG
}

# Not by the record alone, which a script could have made up, nor by a directory that was deleted.
is_at_end() {
    { find_record || is_gone; } && ! is_process "$script_pid" "$script_started"
}

# Has the ticker go on to the next run.
leave_ticker() {
    if is_process "$script_pid" "$script_started"; then
        # A script that nobody could end would keep it waiting.
        kill -s KILL "$ticker"
        wait "$ticker"
    elif has_ticker; then
        # The script may have stopped it; a signal that is still on its way cannot be seen.
        kill -s CONT "$ticker"
        # By now: it may have begun its longer rest while the end was recorded.
        measure_since "$began_s" "$began_ms"
        [ "$elapsed" -lt 90 ] || kill -URG "$ticker"
    fi
}

# Not without need, as bash may lose the status of a script that ends at that very moment. Where there is no
# uptime, our clock is right only as long as we look once a second.
is_to_be_woken() {
    read_clock
    reason='exit'
    find_reason
    [ -z "$uptime" ] || [ "$reason" != exit ]
}

# bash may lose the end of its script to a signal, and then waits for as long as it has other children, as us. Not
# at once, as it may be just about to tell of that end.
is_overdue() {
    ! is_process "$script_pid" "$script_started" || return 1
    overdue=$((overdue + 1))
    [ "$overdue" -gt 3 ]
}

# What can be is written by true and echo, which mksh need not fork for: it has no printf of its own.
claim() {
    verdict=full
    { true >>out && true >>err && echo "$$.$supervisor_started.$boot.$token" >"for.$id"; } 2>/dev/null || return
    verdict=taken
    read_clock
    began_s=$clock_s began_ms=$clock_ms
    take_claim || return
    # Forgotten, or started in another root, between the starter's look and our claim: whoever made
    # that made it before looking here, so one of us at least sees the other.
    if is_forgotten || is_claimed_twice; then
        rm -f "$claim" || exit
        return 1
    fi
    { printf '%s\n' "$host" >host
        echo "$artifact" >artifact
        echo "$script_pid $script_started" >script
        write_began
        [ -z "$cgroup" ] || printf '%s\n' "$cgroup" >cgroup; } 2>/dev/null
    # It is claimed, whatever there was no room for.
    return 0
}

# All shells have this option make a file only where there is none, by one call of the system. It is no claim
# before it names its room: whoever finds none in it for long buries it first, and we look for that afterwards.
take_claim() {
    set -C
    { true >"$claim"; } 2>/dev/null
    failed=$?
    set +C
    [ "$failed" -eq 0 ] || return
    # Not emptied once more: some file systems write what was emptied to the disk at once.
    { echo "$token" >>"$claim"; } 2>/dev/null && return
    verdict=full
    rm -f "$claim" || exit
    return 1
}

# For others, who know nothing of the jumps that we have seen.
write_began() {
    written_s=$jumped_s
    { echo "$((began_s + jumped_s)) $began_ms" >began; } 2>/dev/null
}

is_claimed_twice() {
    for other in $roots; do
        [ "$other" != "$root" ] && is_ours "$other" || continue
        make_searchable "$other/runs"
        [ ! -e "$other/runs/$id" ] || return 0
    done
    return 1
}

drop_room() {
    rm -rf "$run"
}

# Sets reset: an asynchronous list ignores INT and QUIT, and only another program can undo that.
find_reset() {
    reset=''
    [ ! -e "$root/signals.plain" ] || return
    if [ ! -e "$root/signals.env" ]; then probe_signals; fi
    [ -e "$root/signals.env" ] && find_program env && reset="$found --default-signal=INT,QUIT"
}

probe_signals() {
    if env --default-signal=INT,QUIT true 2>/dev/null; then
        printf '' >"$root/signals.env"
    else
        printf '' >"$root/signals.plain"
    fi 2>/dev/null
}

# Is told which run it is for, or sees that there will be none.
become_script() {
    # Not where it is called: a shell keeps what a function's call closes.
    exec 3>&- 4<&- 6<&- 7>&- 8>&-
    # Ourselves by 0, which only a builtin can say. Where it may not enter, the cgroup stays empty.
    [ -z "$cgroup" ] || { echo 0 >"$cgroup/cgroup.procs"; } 2>/dev/null
    read -r run id interpreter <&5 || exit
    cd "$run" || exit 126
    exec </dev/null >>out 2>>err 5<&-
    umask "$mask"
    directory=$run/work
    if [ -e in/directory ]; then
        # The dot keeps trailing newlines.
        directory=$(cat in/directory && printf .)
        directory=${directory%.}
        # shellcheck disable=SC2088  # a literal tilde, as people write it
        case $directory in
        /*) ;;
        '~') directory=${HOME-} ;;
        '~/'*) directory=${HOME-}/${directory#??} ;;
        *) directory=${HOME-}/$directory ;;
        esac
    fi
    # Not by NODE_OPTIONS: node would not start where the file cannot be read, as in another account's
    # or a container's, and what the script starts there has our environment.
    preload=''
    [ "$interpreter" != node ] || preload="--require $helpers/node_modules/cronium/index.js"
    # From here on nothing of ours may be a variable: the entries may have any name.
    # shellcheck disable=SC2086  # words, to be split
    set -- "$run/in" "$id" "$interpreter" "$directory" "$run/calls" "$helpers" \
        $reset $detacher "$interpreter" $preload "$run/in/script"
    cd "$4" 2>/dev/null || {
        printf 'cronium: cannot enter the working directory %s\n' "$4" >&2
        exit 126
    }
    unset OLDPWD
    [ -z "$lent_locale" ] || unset LC_CTYPE
    # What a shell says of an entry it cannot set (bash: UID) is not the script's.
    exec 3>&2 2>/dev/null
    trap 'printf "cronium: the environment could not be set\n" >&3' EXIT
    # shellcheck source=/dev/null
    . "$1/environment"
    # While nobody else can have anything there.
    { true >"$1/environment" && true >"$1/payload"; } 2>/dev/null
    trap - EXIT
    exec 2>&3 3>&-
    export CRONIUM_EXECUTION_ID="$2" CRONIUM_WORK_DIR="$PWD" CRONIUM_INPUT_FILE="$1/input" CRONIUM_CALLS="$5"
    # What they are without us comes after the helpers.
    if [ -n "${BASH_ENV-}" ]; then export CRONIUM_BASH_ENV="$BASH_ENV"; else unset CRONIUM_BASH_ENV; fi
    export BASH_ENV="$6/cronium.bash" \
        PYTHONPATH="$6/python${PYTHONPATH:+:$PYTHONPATH}" \
        NODE_PATH="$6/node_modules${NODE_PATH:+:$NODE_PATH}"
    command -v "$3" >/dev/null 2>&1 || {
        printf 'cronium: the interpreter %s is not installed (not found in PATH)\n' "$3" >&2
        exit 127
    }
    shift 6
    exec "$@"
}

watch() {
    reason='exit' waits=0
    while :; do
        look_around
        [ "$reason" = exit ] || break
        [ "$waits" -eq 0 ] || renew_ticker
        wait_for_script
        was_interrupted || break
    done
    if [ "$reason" != exit ]; then
        # Before its end, which may take a while.
        ! is_gone || leave_tomb
        end_tree "$script_pid" "$script_started"
        return
    fi
    # mksh keeps no status that comes between two waits, but for the last child that it started. It may be the
    # script's own, but must not pass for it.
    [ "$waits" -eq 1 ] || [ -z "${KSH_VERSION-}" ] || [ "$code" -ne 127 ] || code=125 reason=lost
    # Death by signal n is 128+n but for ksh93 (256+n) and yash (384+n).
    if [ "$code" -gt 384 ]; then code=$((code - 256)); elif [ "$code" -gt 256 ]; then code=$((code - 128)); fi
    [ "$code" -le 128 ] || [ "$code" -gt 192 ] || reason=signal
}

# Sets code, and woken if there was a signal; counts waits. Only here they are heard: yash forgets that a function was
# to return where one comes just then.
wait_for_script() {
    woken='' waits=$((waits + 1))
    trap 'woken=1' HUP TERM URG
    wait "$script_pid"
    code=$?
    trap '' HUP TERM URG
}

# A wait ends for the script or for a signal to us, and its status does not say which.
was_interrupted() {
    is_of_our_signals || return 1
    # For one that comes as a wait returns, bash ends its next wait too, which is to be this.
    [ -z "${BASH_VERSION-}" ] || wait $$ 2>/dev/null
    # As another user, which sudo is, it cannot be signalled.
    kill -0 "$script_pid" 2>/dev/null || is_process "$script_pid" "$script_started" && return 0
    [ -n "$woken" ] || return 1
    # Some shells reap as soon as the script ends; they then still have its status, but a signal
    # may end this wait too.
    for _ in 1 2 3; do
        before=$code
        wait_for_script
        [ "$code" -ge 0 ] && [ "$code" -ne 127 ] || break
        is_of_our_signals || return 1
    done
    # bash leaves a wait from within the signal's handler, perhaps with a status that it has read
    # and not yet noted: that is gone, and must not pass for death by that signal. In others 127 is
    # the script's own, or says that the first wait had its status; nothing dies of an URG.
    case ${BASH_VERSION:+bash}$((before % 128)) in
    1 | 15) code=$before ;;
    bash1 | bash15) [ "$code" -eq "$before" ] || code=125 reason=lost ;;
    bash*) code=125 reason=lost ;;
    esac
    return 1
}

# HUP, TERM or URG, which has one of three numbers, however the shell counts from there.
is_of_our_signals() {
    [ "$code" -gt 128 ] || return 1
    case $((code % 128)) in 1 | 15 | 16 | 21 | 23) ;; *) return 1 ;; esac
}

look_around() {
    read_clock
    [ "$jumped_s" -eq "$written_s" ] || write_began
    find_reason
}

# Whether the run was deleted: it looks so too where a script has taken away our right to search it.
is_gone() {
    is_there && return 1
    make_searchable "${run%/*}" "$run" "${claim%/*}"
    ! is_there
}

# In a run of a former artifact both are one, and that is a link.
is_there() {
    { [ -e "for.$id" ] || [ -h go ]; } && { [ -e "$claim" ] || [ -h "$claim" ]; }
}

# Sets code and reason where the run is to be ended.
find_reason() {
    if is_gone; then
        code=125 reason=lost
    elif [ -e stop.cancel ]; then
        code=130 reason=cancel
    elif [ -e stop.timeout ] || is_over_time; then
        code=124 reason=timeout
    elif is_over_output; then
        code=137 reason=output_limit
    fi
}

is_over_time() {
    [ "$limit_s" -gt 0 ] || return 1
    over_s=$((clock_s - began_s - limit_s))
    # Not in ms alone, as mksh counts in 32 bits.
    [ "$over_s" -ge -1 ] && [ $((over_s * 1000 + clock_ms - began_ms)) -ge 0 ]
}

# Not before the first wait: it takes a program, and most scripts are about to end. The ticker, which waits for none,
# looks each second.
is_over_output() {
    [ "$waits" != 0 ] && [ "$output_limit" -gt 0 ] && { [ -s out ] || [ -s err ]; } || return 1
    measure_spool
    [ $((out_size + err_size)) -gt "$output_limit" ]
}

# Sets out_size and err_size by one fork; 0, and nothing listed, where it is not there.
measure_spool() {
    listing=$(LC_ALL=C ls -ln out err 2>/dev/null)
    # Sorted by name; of a run that is just being deleted not both.
    err_size=0 out_size=0 out_listed='' err_listed=''
    size_line "${listing%%"$newline"*}" err && err_size=$bytes err_listed=1
    size_line "${listing##*"$newline"}" out && out_size=$bytes out_listed=1
}

# Sets bytes from line $1 of ls, if it is of file $2; how many fields the time has is the locale's affair.
size_line() {
    case $1 in *" $2") ;; *) return 1 ;; esac
    # shellcheck disable=SC2086  # fields, to be split
    set -- $1
    bytes=$5
}

finish() {
    measure_since "$began_s" "$began_ms"
    # With some ms of ours since the run before.
    cpu=$spent
    measure_cpu
    cpu=$((spent - cpu))
    [ -z "$cgroup" ] || part_with_cgroup
    record_exit "$code.$reason.$elapsed.$cpu"
    wake_attacher
    leave_ticker
    script_pid='' owed="$owed $run/in" owes=$((owes + 1))
    [ "$owes" -lt "$most_owed" ] || drop_owed
}

# Removes the payloads of ended runs; what was secret in them went when they started. One program serves several
# runs, and none is needed for runs that were forgotten, as most are by then.
drop_owed() {
    once=$owed owed='' owes=0
    for path in $once; do
        [ ! -d "$path" ] || owed="$owed $path"
    done
    # shellcheck disable=SC2086  # paths, to be split
    [ -z "$owed" ] || rm -rf $owed
    owed=''
}
owed='' owes=0

# It stays where a script left processes running on purpose: then the run still names it, for forget and the janitor.
part_with_cgroup() {
    left="$left $cgroup"
    is_populated || { true >cgroup; } 2>/dev/null
    cgroup=''
}

# By a call of its own, which reads what we have left unread.
sweep_daily() {
    read_clock
    [ -z "$uptime" ] || [ "$clock_s" -ge "$settle_s" ] || return
    # Per artifact, as this also marks it as in use.
    stamp=$root/swept.$artifact.$boot.$((clock_s / 86400))
    [ ! -e "$stamp" ] && { printf '' >"$stamp"; } 2>/dev/null && exec sh "$0" +sweep "$nonce" "$root"
}

# By a name alone, which is there as a whole or not at all, and needs no room: a file that was written, and then
# renamed into place, was found empty on a full disk.
record_exit() {
    # Where it cannot even be searched it looks as if it were gone.
    [ -x . ] || chmod u+rwx "$run" 2>/dev/null
    until find_record || { true >"exit.$1"; } 2>/dev/null || is_gone; do
        # There may be no files left either, or the script has changed what we may.
        rm -rf in
        chmod u+rwx "$run"
        sleep 1
    done
    # It is looked for by reading the directory.
    find_record || chmod u+rwx "$run" 2>/dev/null
}

# Sets spent: the ms of user and system time of our children, as long as times can be read.
measure_cpu() {
    user='' system=''
    # Of a special builtin, which times is, a file that cannot be written would be the shell's end; and a script
    # may have put there what nobody opens at the other end.
    { [ ! -p in/cpu ] && command times >in/cpu &&
        { read -r rest && read -r user system; } <in/cpu; } 2>/dev/null
    parse_time "$user" || return
    spent=$ms
    parse_time "$system" && spent=$((spent + ms))
}

parse_time() {
    case $1 in *[!0-9ms.]* | *.*.*) return 1 ;; [0-9]*m[0-9]*.[0-9]*s) ;; *) return 1 ;; esac
    s=${1#*m} fraction=${1#*.}
    s=${s%%.*} fraction=${fraction%s}00
    fraction=${fraction%"${fraction#???}"}
    ms=$(((${1%%m*} * 60 + s) * 1000 + 1$fraction - 1000))
}

# The exit record is the truth; this only ends a wait. Ignored by default, so a stale pid is harmless.
wake_attacher() {
    echo over >&3
    read_attacher
    [ "$attacher_boot" = "$boot" ] && { [ "$attacher" = "$PPID" ] || is_process "$attacher" "$attacher_started"; } &&
        kill -URG "$attacher" 2>/dev/null
}

read_attacher() {
    attached=''
    { [ -f attacher ] && read -r attached <attacher; } 2>/dev/null
    attacher=${attached%%.*}
    attacher_started=${attached#*.}
    attacher_boot=${attacher_started#*.}
    attacher_started=${attacher_started%%.*} attacher_boot=${attacher_boot%%.*}
}

# It may be busy for a moment more. What a script left running on purpose keeps it: forget and the
# janitor look again.
leave_cgroup() {
    tries=0
    while is_populated && [ "$tries" -lt 3 ]; do
        tries=$((tries + 1))
        nap
    done
    is_populated || drop_cgroup
}

is_populated() {
    populated=0
    { while read -r key value; do
        case $key in populated) populated=$value ;; esac
    done <"$cgroup/cgroup.events"; } 2>/dev/null
    [ "$populated" = 1 ]
}

drop_cgroup() {
    # The script may have made some of its own below it.
    rmdir "$cgroup" 2>/dev/null || find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
}

# Ends every process of the run whose script is process $1, started at $2; returns when none is left.
end_tree() {
    trap '' URG
    leader=$1 leader_started=$2
    find_tree
    [ -z "$group_is_ours" ] || kill -s TERM -- "-$leader" 2>/dev/null
    for pid in $found; do
        # Once each: the group has had it.
        identify "$pid" && [ "$group_of" != "$leader" ] && kill -s TERM "$pid" 2>/dev/null
    done
    read_clock
    ended_s=$clock_s ended_ms=$clock_ms empty=0 elapsed=0 napped_ms=0
    while [ "$elapsed" -lt "$grace_ms" ]; do
        nap
        find_tree
        if [ -n "$found" ]; then empty=0; else empty=$((empty + 1)); fi
        [ "$empty" -lt 3 ] || return 0
        measure_since "$ended_s" "$ended_ms"
        napped_ms=$((napped_ms + nap_ms))
        [ -n "$uptime" ] || elapsed=$napped_ms
    done
    kill_tree
}

# STOP, look again, KILL: what forks while it is looked for would win otherwise.
kill_tree() {
    empty=0 looks=0
    while [ "$empty" -lt 3 ] && [ "$looks" -lt "$max_looks" ]; do
        looks=$((looks + 1))
        # All of it at once, also other users'. Linux before 5.14 cannot.
        [ -z "$cgroup" ] || { echo 1 >"$cgroup/cgroup.kill"; } 2>/dev/null
        find_tree
        if [ -z "$found" ]; then
            empty=$((empty + 1))
        else
            empty=0
            signal_found STOP
            find_tree
            signal_found KILL
        fi
        nap
        read_clock
    done
    [ "$empty" -lt 3 ] || return 0
    find_tree
    [ -z "$found" ] || tell_of_the_rest
}

# On stderr, as the last of it: the run ends, and whoever reads it knows that something goes on.
tell_of_the_rest() {
    # shellcheck disable=SC2086  # pids, to be split
    set -- $found
    # A newline does not outlive the substitution.
    on_a_line=$(tail -c 1 err 2>/dev/null)
    [ -z "$on_a_line" ] || on_a_line=$newline
    { printf '%scronium: %s processes could not be ended, the first is %s\n' "$on_a_line" $# "$1" >>err; } 2>/dev/null
}

signal_found() {
    [ -z "$group_is_ours" ] || kill -s "$1" -- "-$leader" 2>/dev/null
    # shellcheck disable=SC2086  # pids, to be split
    [ -z "$found" ] || kill -s "$1" $found 2>/dev/null
}

# Sets found: the living processes of the script's group and session, those that carry our cookie, and
# those in the run's cgroup.
find_tree() {
    found='' group_is_ours=1
    [ -z "$cgroup" ] || ! is_populated || find_members
    # A number in use by a group or session is given to no new process, so a leader that is gone
    # is no danger, but one with another start time is.
    identify "$leader"
    case $started in '' | "$leader_started") ;; *) group_is_ours='' ;; esac
    [ -n "$leader" ] || group_is_ours=''
    if [ ! -r /proc/self/stat ]; then
        find_group_by_ps
        return
    fi
    if [ -n "$group_is_ours" ]; then
        # Also before it has a group of its own.
        ! is_process "$leader" "$leader_started" || add_found "$leader"
        for path in $(grep -lsE "\\) [^ZX] [0-9]+ ([0-9]+ )?$leader " /proc/[0-9]*/stat); do
            add_found "$path"
        done
    fi
    if printf 'a\000b\000' | grep -qzxF b 2>/dev/null; then
        for path in $(grep -lszxF "CRONIUM_EXECUTION_ID=$id" /proc/[0-9]*/environ); do
            add_found "$path"
        done
        return
    fi
    for path in /proc/[0-9]*/environ; do
        [ -O "$path" ] && { tr '\000' '\n' <"$path" | grep -qxF "CRONIUM_EXECUTION_ID=$id"; } 2>/dev/null &&
            add_found "$path"
    done
}

add_found() {
    pid=${1#/proc/}
    pid=${pid%%/*}
    case " $found " in *" $pid "*) ;; *) found="$found $pid" ;; esac
}

# Below it too, and no 0, which is a process of another pid namespace, and to kill our own group.
find_members() {
    for pid in $(find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null); do
        case $pid in [1-9]*) add_found "$pid" ;; esac
    done
}

find_group_by_ps() {
    [ -n "$group_is_ours" ] || return
    # shellcheck disable=SC2046  # fields, to be split
    set -- $(ps -A -o pid= -o pgid= -o state= 2>/dev/null)
    while [ $# -ge 3 ]; do
        case $2$3 in "$leader"[!0-9ZX]*) found="$found $1" ;; esac
        shift 3
    done
}

name_artifact "$0"
# A shell reads a script as it runs it: all that follows costs the start of a run nothing.
[ "${1-}" != +supervise ] || supervise "$@"

# The calls: what is asked of this server.

main() {
    verb=${1-} nonce=${2-}
    is_name "$nonce" && [ ${#nonce} -le 64 ] || fail 64 'usage: sh runner VERB NONCE [ARGUMENT...]'
    shift 2
    case $verb in
    # For the installer.
    +unpack)
        unpack_helpers
        exit
        ;;
    # For the supervisor.
    +sweep)
        know_here
        sweep "$1"
        exit
        ;;
    # The verb was handed over by another artifact, which has greeted already.
    +*) verb=${verb#+} ;;
    *)
        [ "$verb" = run ] && [ $# -gt 0 ] && check_own_digest "$1"
        printf '\ncronium h %s %s %s\n' "$nonce" "$protocol" "$artifact"
        ;;
    esac
    know_here
    case $verb in
    run) run_all ;;
    # The same, made before it is needed: with all that takes time.
    spare)
        is_spare=1
        find_nest
        start_supervisor
        run_all
        ;;
    attach)
        [ $# -eq 3 ] || fail 64 'usage: attach NONCE ID OUT ERR'
        check_id "$1" && is_number "$2" && is_number "$3" || fail 64 'bad argument'
        out_at=$2 err_at=$3
        find_run || fail 66 "no run $id"
        hand_over attach "$id" "$out_at" "$err_at"
        attach_found
        ;;
    signal)
        case ${2-} in cancel | timeout) ;; *) fail 64 'usage: signal NONCE ID cancel|timeout' ;; esac
        check_id "$1" || fail 64 'bad argument'
        find_run || fail 66 "no run $id"
        hand_over signal "$id" "$2"
        signal_run "$2"
        ;;
    answer)
        [ $# -eq 3 ] || fail 64 'usage: answer NONCE ID CALL LENGTH'
        check_id "$1" && is_call "$2" && is_number "$3" || fail 64 'bad argument'
        find_run || fail 66 "no run $id"
        hand_over answer "$id" "$2" "$3"
        take_answer "$2" "$3"
        ;;
    forget) forget_all "$@" || fail "$?" "$complaint" ;;
    list) list_all ;;
    version) ;;
    *) fail 64 "unknown verb: $verb" ;;
    esac
}

fail() {
    printf 'cronium: %s\n' "$2" >&2
    exit "$1"
}

is_name() {
    case $1 in '' | .* | *[!A-Za-z0-9._-]*) return 1 ;; esac
    [ ${#1} -le 200 ]
}

is_number() {
    # A leading zero would make it octal.
    case $1 in 0) return 0 ;; [1-9]*) ;; *) return 1 ;; esac
    case $1 in *[!0-9]*) return 1 ;; esac
    [ ${#1} -le 15 ]
}

check_id() {
    id=$1
    is_name "$id"
}

# Of a call, as a helper makes it up.
is_call() {
    case $1 in '' | *[!A-Za-z0-9._-]*) return 1 ;; esac
    [ ${#1} -le 64 ]
}

check_own_digest() {
    digest_of "$0"
    [ -z "$sum" ] || [ "$sum" = "$1" ] || fail 65 'this runner differs from what was asked for'
}

# Sets sum; empty where the server has no tool for it.
digest_of() {
    if command -v sha256sum >/dev/null 2>&1; then sum=$(sha256sum <"$1")
    elif command -v shasum >/dev/null 2>&1; then sum=$(shasum -a 256 <"$1")
    elif command -v sha256 >/dev/null 2>&1; then sum=$(sha256 -q <"$1")
    elif command -v openssl >/dev/null 2>&1; then sum=$(openssl dgst -sha256 <"$1")
    else sum=$(busybox sha256sum <"$1" 2>/dev/null); fi
    # "hex  -" by most, "SHA2-256(stdin)= hex" by openssl
    case $sum in *'= '*) sum=${sum##*= } ;; *) sum=${sum%% *} ;; esac
}

# Forks nothing on Linux: it is on the way of every run.
know_here() {
    uid='' mask='' boot='' host=''
    { while read -r key value rest; do
        case $key in
        Umask:) mask=$value ;;
        Uid:) uid=${rest%%[!0-9]*} && break ;;
        esac
    done </proc/self/status; } 2>/dev/null
    [ -n "$uid" ] || uid=$(id -u)
    [ -n "$mask" ] || mask=$(umask)
    umask 077
    { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null ||
        boot=$(sysctl -n kern.bootsessionuuid 2>/dev/null || sysctl -n kern.boot_id 2>/dev/null)
    case $boot in '' | *[!A-Za-z0-9-]*) boot=unknown ;; esac
    { read -r host </proc/sys/kernel/hostname; } 2>/dev/null || host=$(uname -n)
    roots="/var/tmp/cronium-$uid /tmp/cronium-$uid"
    case ${HOME-} in
    *[!A-Za-z0-9._/-]*) ;;
    /*) roots="${HOME%/}/.cache/cronium $roots" ;;
    esac
}

# Sets root, claim and run.
find_run() {
    for root in $roots; do
        claim=$root/runs/$id
        is_ours "$root" || continue
        make_searchable "$root/runs"
        [ -e "$claim" ] && await_room && return
    done
    return 1
}

# A claim that is just being made names no room yet. Whoever made one that names none for long is gone, or stopped:
# then the run is buried, which the latter will see.
await_room() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        find_room && return
        [ -f "$claim" ] || return
        nap
    done
    leave_tomb && rm -f "$claim"
    return 1
}

# Sets run to the room that the claim names.
find_room() {
    if [ -d "$claim" ]; then
        find_former_room
    else
        read_room && is_name "$room" || return
        run=$root/rooms/$room
        make_searchable "$root/rooms" "$run"
    fi
}

read_room() {
    room=''
    [ -f "$claim" ] || return
    # A script may have taken away this right too.
    { [ -r "$claim" ] || chmod u+rw "$claim"; } 2>/dev/null
    { read -r room <"$claim"; } 2>/dev/null || find_claimed_room
}

# Where the machine went down since, a file may be empty; names are kept sooner. What is made with the claim made says
# which room is not one that was beaten to it.
find_claimed_room() {
    for path in "$root"/rooms/*/"for.$id"; do
        room=${path%/*}
        [ -e "$room/host" ] || continue
        room=${room##*/}
        return 0
    done
    room=''
    return 1
}

# Former artifacts had all of a run in one directory, and the claim in it.
find_former_room() {
    run=$claim
    make_searchable "$run"
    [ -h "$run/go" ] && claim=$run/go
}

# A run is served to its end by the artifact that started it.
hand_over() {
    starter=''
    { read -r starter <"$run/artifact"; } 2>/dev/null
    case $starter in "$artifact" | '' | *[!0-9a-f]*) return ;; esac
    over=$1
    shift
    for other in $roots; do
        [ -f "$other/runner-$starter" ] && is_ours "$other" && drop_ready &&
            exec sh "$other/runner-$starter" "+$over" "$nonce" "$@"
    done
}

# Sets supervisor, supervisor_started, supervisor_boot, token and calls: who starts the run, and in which room.
read_claim() {
    target='' calls=calls
    if [ -h "$run/go" ]; then
        read_link "$run/go"
        calls=calls.${target#*.*.*.}
    else
        { read -r target <"$run/for.$id"; } 2>/dev/null
    fi
    supervisor=${target%%.*} target=${target#*.}
    supervisor_started=${target%%.*} target=${target#*.}
    supervisor_boot=${target%%.*} token=${target#*.}
}

supervisor_lives() {
    [ "$supervisor_boot" = "$boot" ] && is_process "$supervisor" "$supervisor_started"
}

# On a home that hosts share, a pid or a boot id of another host tells us nothing.
is_elsewhere() {
    owner_host=''
    { read -r owner_host <"$run/host"; } 2>/dev/null
    [ -n "$owner_host" ] && [ "$owner_host" != "$host" ]
}

is_lost() {
    ! is_elsewhere && ! supervisor_lives && ! find_record "$run"
}

# One run after the other, and in between what is to be forgotten, as long as somebody asks for it.
run_all() {
    trap drop_ready EXIT
    trap 'exit 74' PIPE
    while [ "$served" -lt "$most_served" ]; do
        header=''
        IFS= read -r header || {
            # A spare that was not needed.
            [ -n "$header" ] || exit 0
            fail 66 'half a header: nothing was started'
        }
        # shellcheck disable=SC2086  # words, to be split
        set -f && set -- $header && set +f
        case ${1-} in
        forget)
            shift
            # Whatever becomes of it is told, and the next run not held up by it.
            forget_all "$@" 2>/dev/null
            printf 'f %s\n' "$?" || exit 74
            ;;
        *) run_one "$@" ;;
        esac
        served=$((served + 1))
    done
}
served=0

# The payload is lines, their number announced, where it is short and plain; else all that follows.
run_one() {
    # What waited may have been deleted meanwhile.
    [ -s "$0" ] || fail 65 'this runner is gone'
    [ $# -eq 6 ] || fail 64 'bad header'
    check_id "$1" && is_number "$2" && is_number "$3" && is_number "$4" && is_number "$5" ||
        fail 64 'bad header'
    out_at=$2 err_at=$3 limit_s=$4 length=$5 digest=$6 verdict='' received='' lines_left='' is_ordered=''
    # The wait for this is no jump of the clock.
    last_s=''
    [ "$digest" != lines ] || lines_left=$length
    # A start that was beaten is looked at again: what beat it may itself be forgotten by now.
    for attempt in 1 2 3; do
        find_run || run=''
        # With a payload in it, where the supervisor was killed before it could remove it.
        [ -z "$received" ] || [ "$run" = "${in%/*}" ] || [ ! -d "$in" ] || rm -rf "${in%/*}"
        if is_forgotten; then
            drain_stdin
            printf 'x 125 forgotten 0 0\n' || exit 74
            return
        fi
        if [ -n "$run" ]; then
            drain_stdin
            hand_over attach "$id" "$out_at" "$err_at"
            attach_found
            return
        fi
        [ -z "$received" ] || break
        # Somebody has had output of it: it did start, and is gone.
        [ "$out_at" = 0 ] && [ "$err_at" = 0 ] || fail 66 "no run $id"
        have_helpers || unpack_helpers || fail 73 "the helpers could not be put into $helpers"
        make_room
        receive_payload
        launch
        case $verdict in
        new*)
            attach_started
            # The second run had several made, and there may be a third. Here, as only now root is that of a room.
            [ "$rooms" -lt 2 ] || [ -n "$ready" ] || ! is_ours "$root" || prepare_rooms
            return
            ;;
        esac
    done
    run=${in%/*} root=${run%/rooms/*}
    drop_room
    [ -z "$cgroup" ] || rmdir "$cgroup" 2>/dev/null
    [ -s "$0" ] || fail 65 'this runner is gone'
    case $verdict in
    full) fail 73 "no room for the output in $root" ;;
    esac
    fail 73 "the run could not be started in $root (${verdict:-no supervisor}, attempt $attempt)"
}

# Sets nest to our own cgroup where runs can have one of their own below it; forks nothing. Only the two
# usual places of cgroup v2 are looked at: a list of mounts is long where there are containers.
find_nest() {
    nest='' ours=''
    { while IFS= read -r line; do
        case $line in 0::/*) ours=${line#0::} ;; esac
    done </proc/self/cgroup; } 2>/dev/null
    # Those of runs are named by words.
    case $ours in '' | *..* | *[!A-Za-z0-9._@:/-]*) return ;; esac
    for top in /sys/fs/cgroup /sys/fs/cgroup/unified; do
        [ -e "$top/cgroup.controllers" ] || continue
        nest=$top${ours%/}
        break
    done
    [ -w "$nest" ] && [ -w "$nest/cgroup.procs" ] || nest=''
    # In a container that sees its host's cgroups our path is another's, whose pids are all 0 here.
    one=''
    [ -z "$nest" ] || { while read -r one && [ "$one" = 0 ]; do :; done <"$nest/cgroup.procs"; } 2>/dev/null
    case $one in [1-9]*) ;; *) nest='' ;; esac
}

# To its end, for a run that did not come after all is to take over nothing.
drain_stdin() {
    [ -z "$received" ] || return 0
    if [ -z "$lines_left" ]; then
        # Some wc put blanks before the number.
        [ $(($(wc -c))) -eq "$length" ] || fail 66 'half a payload'
    else
        while [ "$lines_left" -gt 0 ]; do
            read_payload_line || fail 66 'half a payload'
        done
    fi
}

# They may have been deleted, one or all: what cleans /tmp goes by the age of each file.
have_helpers() {
    for file in $helper_files; do
        [ -s "$helpers/$file" ] || return 1
    done
}

# From behind the last line that the shell reads of us. Each file appears whole, and is the same in every
# writing, so that nobody who does this at the same time is disturbed.
unpack_helpers() {
    new=$helpers/.new.$$.$nonce
    for file in $helper_files; do
        unpack_helper "$helpers/$file" 2>/dev/null || {
            rm -f "$new"
            return 1
        }
    done
}

unpack_helper() {
    mkdir -p "${1%/*}" || return
    # By cat, as a full disk is no reason for every sed to fail.
    sed -e "1,\\|^===$file\$|d" -e '/^===/,$d' "$0" | cat >"$new" || return
    [ -s "$new" ] && mv -f "$new" "$1"
}

# Takes a room of this call's own, in the first root that can be written, and has a supervisor come while the payload
# does.
make_room() {
    cgroup=''
    if [ -z "$is_supervised" ]; then
        find_nest
        cgroup=${nest:+"$nest/cronium-$$-$nonce-$served"}
    fi
    for root in $roots; do
        refuse_foreign
        take_room || continue
        [ -d "$cgroup" ] || cgroup=''
        # Whoever may write beside the root could have put one there meanwhile.
        refuse_foreign
        # Written and not only asked: a full file system still takes directories. 16 KiB, that a
        # script has at least the room to say what it met.
        { printf '%16384s\n' room >"$in/payload"; } 2>/dev/null || {
            drop_room
            continue
        }
        order_run
        return 0
    done
    [ -z "$cgroup" ] || rmdir "$cgroup" 2>/dev/null
    fail 73 "no directory can be written, or no space is left: $roots"
}

# Sets run, token and in. What is ready may have been deleted meanwhile.
take_room() {
    case $ready in
    "$root"/*) [ -d "${ready%% *}/calls" ] && [ -d "$root/runs" ] || drop_ready ;;
    esac
    case $ready in
    "$root"/*) ;;
    *) prepare_rooms "$cgroup" || return ;;
    esac
    run=${ready%% *} ready=${ready#* }
    token=${run##*/} in=$run/in
}

# At first only one, as most calls serve one run. With cgroup $1, which comes last, for it is no reason to fail.
prepare_rooms() {
    lot='' paths='' last=$((rooms + rooms_at_once))
    [ "$rooms" -gt 0 ] || last=1
    while [ "$rooms" -lt "$last" ]; do
        rooms=$((rooms + 1))
        room=$root/rooms/$$-$nonce-$rooms
        lot="$lot$room " paths="$paths $room/in $room/work $room/calls"
    done
    # shellcheck disable=SC2086  # paths, to be split
    mkdir -p "$root/runs" $paths ${1:+"$1"} 2>/dev/null || [ -d "$room/calls" ] || {
        [ ! -d "$root/rooms" ] || rm -rf $lot
        return 1
    }
    ready=$lot$ready
}
rooms=0 ready=''

drop_ready() {
    # shellcheck disable=SC2086  # paths, to be split
    [ -z "$ready" ] || rm -rf $ready
    ready=''
}

refuse_foreign() {
    for place in "$root" "$root/runs" "$root/rooms"; do
        [ ! -h "$place" ] || fail 69 "$place is a link: refused"
        [ ! -e "$place" ] || is_ours "$place" || fail 69 "$place is not ours: refused"
    done
    [ ! -h "$root/runs/$id" ] || fail 69 "$root/runs/$id is a link: refused"
}

receive_payload() {
    if [ -n "$lines_left" ]; then
        receive_lines
        return
    fi
    cat >"$in/payload" 2>/dev/null || {
        drop_room
        fail 73 "no room for the payload in $root"
    }
    received=1
    exec 4<"$in/payload"
    parse_payload || refuse_payload 'half a payload, or not one of ours'
    # At once, on two processors: what was cut from a wrong payload is dropped.
    cut_payload &
    cutter=$!
    exec 4<&-
    digest_of "$in/payload"
    wait "$cutter" || {
        drop_room
        fail 73 "no room for the payload in $root"
    }
    if [ -z "$sum" ]; then
        # No digest tool: the length is what is left to check.
        # shellcheck disable=SC2046  # a number; some wc put blanks before it
        [ $(wc -c <"$in/payload") -eq "$length" ] && sum=$digest
    fi
    [ "$sum" = "$digest" ] || refuse_payload 'half a payload or a wrong digest'
}

refuse_payload() {
    drop_room
    fail 66 "$1: nothing was started"
}

# What a shell can read by itself: no process is started for it. A connection can end before the last
# line, which is always the same, and cannot change what it carries.
receive_lines() {
    interpreter='' output_limit=0 directory=0 environment=0 script=0 input=0
    while read_payload_line && [ -n "$line" ]; do
        parse_entry "${line%% *}" "${line#* }" || refuse_payload 'not a payload of ours'
    done
    [ -n "$interpreter" ] || refuse_payload 'half a payload, or not one of ours'
    [ "$directory" -eq 0 ] || take_lines directory "$directory"
    take_lines environment "$environment"
    take_lines script "$script"
    take_lines input "$input"
    read_payload_line && [ "$line" = cronium-end ] || refuse_payload 'half a payload'
    received=1
}

read_payload_line() {
    lines_left=$((lines_left - 1))
    IFS= read -r line
}

# Writes the next $2 lines to file $1, the last without its newline. By one printf, which mksh forks for.
take_lines() {
    left=$2 text=''
    while [ "$left" -gt 0 ]; do
        read_payload_line || refuse_payload 'half a payload'
        left=$((left - 1))
        text=$text$line
        [ "$left" -eq 0 ] || text=$text$newline
    done
    { printf %s "$text" >"$in/$1"; } 2>/dev/null || {
        drop_room
        fail 73 "no room for the payload in $root"
    }
}

parse_payload() {
    IFS= read -r line <&4
    [ "$line" = 'cronium-payload 1' ] || return 1
    interpreter='' output_limit=0 directory=0 environment=0 script=0 input=0
    while IFS=' ' read -r key value <&4; do
        [ -n "$key" ] || break
        parse_entry "$key" "$value" || return
    done
    [ -n "$interpreter" ]
}

# Sizes are in bytes, or in lines where that is how they come.
parse_entry() {
    case $1 in
    interpreter) is_name "$2" ;;
    *) is_number "$2" ;;
    esac || return
    case $1 in
    interpreter) interpreter=$2 ;;
    output_limit) output_limit=$2 ;;
    directory) directory=$2 ;;
    environment) environment=$2 ;;
    script) script=$2 ;;
    input) input=$2 ;;
    *) return 1 ;;
    esac
}

cut_payload() {
    [ "$directory" -eq 0 ] || cut_section directory "$directory" || return
    cut_section environment "$environment" && cut_section script "$script" && cut_input
}

# Most jobs have none, and that a shell can read itself.
cut_input() {
    if [ "$input" -ne 4 ]; then
        cut_section input "$input"
        return
    fi
    IFS= read -r rest <&4
    if [ "$rest" = null ]; then
        printf null >"$in/input"
    else
        # Once more from the start, as some of it has been read.
        exec 4<"$in/payload" && dd bs=$((length - 4)) skip=1 <&4 >"$in/input"
    fi 2>/dev/null
}

cut_section() {
    if [ "$2" -eq 0 ]; then
        printf '' >"$in/$1"
    else
        dd bs="$2" count=1 <&4 >"$in/$1"
    fi 2>/dev/null
}

# Starts one for all runs of this call: 8 takes its orders, 9 has what becomes of them, and shows its end. For
# the first of its runs there may be a cgroup.
start_supervisor() {
    find_detacher
    open_pipe 8 3 && open_pipe 7 9 || return
    # yash reads by the locale it was started in, and the C locale knows no letter beyond ASCII.
    lent_locale=''
    [ -z "${YASH_VERSION-}" ] || [ -n "${LC_ALL-}${LC_CTYPE-}${LANG-}" ] || lent_locale=C.UTF-8
    # shellcheck disable=SC2086  # words, to be split
    (
        # To enter one is quick once somebody has, and the supervisor has yet to come.
        if [ -n "$cgroup" ]; then { echo 0 >"$cgroup/cgroup.procs"; } 2>/dev/null & fi
        [ -z "$lent_locale" ] || export LC_CTYPE="$lent_locale"
        # exec, for yash would stay as its parent, with the pipes in hand.
        exec $detacher sh "$0" +supervise "$nonce" "${nest:+"$nest/cronium-$$-$nonce"}" "$cgroup" \
            "$is_spare" "$mask" "$lent_locale" "$boot" "$host" "$roots" "$detacher" \
            <&3 >&7 3<&- 7>&- 8>&- 9<&- 2>/dev/null
    ) &
    exec 3<&- 7>&-
    is_supervised=1
}
is_supervised='' is_spare='' cgroup=''

# Sets verdict: "new PID START" once the supervisor has claimed the run. One that has gone before that has a
# successor.
launch() {
    for _ in 1 2; do
        [ -n "$is_ordered" ] || order_run || break
        is_ordered=''
        echo "$interpreter $output_limit" >&8
        while IFS= read -r verdict <&9; do
            case $verdict in
            # Of a run before.
            tick | over) ;;
            *) cgroup='' && return ;;
            esac
        done
        is_supervised=''
        exec 8>&- 9<&-
        [ ! -e "$root/runs/$id" ] || break
    done
    verdict=''
}

# Tells the supervisor of a run that is to be started soon, or whose payload is to be removed if this call ends.
order_run() {
    [ -n "$is_supervised" ] || start_supervisor || return
    echo "$root $id $token $limit_s" >&8
    is_ordered=1
}

# Sets detacher: what puts a command in a session of its own, as words. Without one, it is left plain.
find_detacher() {
    if find_program setsid; then
        detacher=$found
    elif find_program perl; then
        detacher="$found -MPOSIX -e POSIX::setsid();exec(@ARGV);exit(126)"
    else
        detacher=''
    fi
}

open_spool() {
    { cd "$run" && command exec 4<out 5<err; } 2>/dev/null
}

# Sets out_cut and err_cut: how far the streams were when the script last emptied their files, as it does by
# > /dev/stderr.
read_cut() {
    out_cut='' err_cut=''
    { [ -f emptied ] && read -r out_cut err_cut <emptied; } 2>/dev/null
    is_number "$out_cut" && is_number "$err_cut" || out_cut=0 err_cut=0
}

# Just started by this very call, so nothing needs to be looked up.
attach_started() {
    # The script may have been quicker, and have changed what we may, or deleted it; it did start.
    open_spool || { chmod u+rwx "$run" 2>/dev/null && open_spool; } || {
        cd /
        printf 'r new 0\nx 125 lost 0 0\n' || exit 74
        return
    }
    verdict=${verdict#new }
    supervisor=${verdict%% *} supervisor_started=${verdict##* } supervisor_boot=$boot calls=calls
    claim=$root/runs/$id
    take_over
    state=new out_cut=0 err_cut=0
    echo 'r new 0'
    follow
}

attach_found() {
    # It was deleted with its supervisor, or after its end.
    [ -d "$run" ] || {
        printf 'r ended 0\nx 125 lost 0 0\n' || exit 74
        return
    }
    cd "$run" 2>/dev/null && [ -r out ] && [ -r err ] || fail 66 "no run $id"
    exec 4<out 5<err
    read_cut
    measure_spool
    out_size=$((out_size + out_cut)) err_size=$((err_size + err_cut))
    [ "$out_at" -le "$out_size" ] && [ "$err_at" -le "$err_size" ] ||
        fail 66 "offset beyond the spool: $out_at of $out_size, $err_at of $err_size"
    # What was before the cut is gone, whoever asks for it; from here on it counts as they do.
    if [ "$out_at" -lt "$out_cut" ] || [ "$err_at" -lt "$err_cut" ]; then
        [ "$out_at" -ge "$out_cut" ] || out_cut=$out_at
        [ "$err_at" -ge "$err_cut" ] || err_cut=$err_at
        { echo "$out_cut $err_cut" >emptied; } 2>/dev/null
    fi
    [ "$out_at" -eq "$out_cut" ] || dd bs=1 skip=$((out_at - out_cut)) count=0 <&4 2>/dev/null
    [ "$err_at" -eq "$err_cut" ] || dd bs=1 skip=$((err_at - err_cut)) count=0 <&5 2>/dev/null
    read_claim
    take_over
    is_lost && declare_lost
    state=attached
    find_record && state=ended
    measure_run
    printf 'r %s %s\n' "$state" "$elapsed"
    follow
}

# Sets elapsed, the ms since the run began; 0 where that cannot be known.
measure_run() {
    elapsed=0
    if find_record; then
        set_record "$record"
        elapsed=$record_ms
    elif [ "$supervisor_boot" = "$boot" ]; then
        { read -r began_s began_ms <began; } 2>/dev/null && measure_since "$began_s" "$began_ms"
    fi
}

set_record() {
    record_code=${1%%.*} record_ms=${1#*.}
    record_reason=${record_ms%%.*} record_ms=${record_ms#*.}
    record_cpu=${record_ms##*.} record_ms=${record_ms%%.*}
}

# Written in place and always as long, so that it also works on a full disk; read by the line, as a shell reads
# each byte by a call.
take_over() {
    [ -n "$me" ] || {
        identify $$
        me=$$.$started.$boot.$nonce
    }
    read_attacher
    { printf '%-180s\n' "$me$newline" 1<>attacher; } 2>/dev/null
    [ -n "$attached" ] && [ "$attacher_boot" = "$boot" ] &&
        is_process "$attacher" "$attacher_started" && kill -URG "$attacher" 2>/dev/null
}

me=''

is_replaced() {
    attached=''
    { [ -f attacher ] && read -r attached <attacher; } 2>/dev/null
    [ -n "$attached" ] && [ "$attached" != "$me" ]
}

# bash tells of every sleep that we end.
follow() {
    follow_quietly 2>/dev/null
    trap - URG
    # Closed, and not in the way of who removes it.
    exec 4<&- 5<&-
    cd /
}

follow_quietly() {
    trap '' URG
    tick=0.05 tick_ms=50 quiet_ms=0 unlooked_ms=0 told=' ' told_count=0 is_new='' held=''
    [ "$state" != new ] || is_new=1
    [ "$state" != attached ] || tell_what_was_said
    while :; do
        # Looked at first, so it vouches for the sizes.
        ended=''
        find_record && ended=$record
        if is_replaced; then
            printf 't\n'
            exit 0
        fi
        sent=0
        # Of a new run not before there is word of it: most have ended by then, and one look serves.
        [ -n "$is_new" ] && [ -z "$ended" ] || send_output
        if [ -n "$ended" ]; then
            # Of what is said while a worker leaves and another comes, only the helper knows when it
            # has been heard. Where there was one worker only, it has heard all.
            [ "$state" = new ] || tell_what_was_said
            set_record "$ended"
            printf '%sx %s %s %s %s\n' "$held" "$record_code" "$record_reason" "$record_ms" "$record_cpu" ||
                exit 74
            return
        fi
        if is_gone; then
            leave_tomb
            printf 'x 125 lost 0 0\n' || exit 74
            return
        fi
        if look_for_calls; then tell_calls; fi
        choose_tick
        [ "$sent" -ge "$piece" ] || pause
    done
}

# Sets fresh: calls that wait and that this attachment has not told yet. Forks nothing.
look_for_calls() {
    fresh='' still=' ' room=$((most_calls - told_count)) told_count=0
    for path in "$calls"/*.req; do
        call=${path#"$calls/"}
        call=${call%.req}
        is_call "$call" && [ -f "$path" ] && [ ! -e "$calls/$call.ans" ] || continue
        case $told in
        *" $call "*) still="$still$call " told_count=$((told_count + 1)) ;;
        *) [ "$room" -le 0 ] || fresh="$fresh $call" room=$((room - 1)) ;;
        esac
    done
    # Without those that have had their answers.
    told=$still
    [ -n "$fresh" ]
}

tell_calls() {
    for call in $fresh; do
        send_file "$call" "$calls/$call.req"
        told="$told$call " told_count=$((told_count + 1))
    done
}

# It outlives the worker that heard it.
tell_what_was_said() {
    for call in output condition; do
        [ ! -f "$calls/$call.said" ] || send_file "$call" "$calls/$call.said"
    done
}

# Sends file $2 as call $1, with as many bytes as announced, also where it is made smaller or removed
# meanwhile; what is no request is left out: the directory is the script's own, so anything may lie in it.
send_file() {
    # shellcheck disable=SC2046  # fields, to be split
    set -- "$1" "$2" $(ls -lnd "$2")
    case ${3-} in -*) n=$7 ;; *) return ;; esac
    is_number "$n" && [ "$n" -gt 0 ] && [ "$n" -le "$call_limit" ] || return
    printf 'c %s %s\n' "$1" "$n" || exit 74
    send_piece <"$2" || send_zeros || exit 74
}

# As many bytes as announced: all that is read at once is written, with NULs in the place of what is missing.
send_piece() {
    { records=$(dd bs="$n" count=1 conv=sync 2>&1 >&6) || records=''; } 6>&1
    case $records in
    1+0* | 0+1*) ;;
    *) send_zeros ;;
    esac
}

send_zeros() {
    dd if=/dev/zero bs="$n" count=1 2>/dev/null
}

# Sets out_size and err_size to how long the streams are, with what the script has emptied.
measure_streams() {
    measure_spool
    out_size=$((out_size + out_cut)) err_size=$((err_size + err_cut))
    [ -n "$out_listed" ] || out_size=$out_at
    [ -n "$err_listed" ] || err_size=$err_at
    if [ "$out_at" -gt "$out_size" ]; then
        out_size=$((out_size - out_cut + out_at)) out_cut=$out_at
        note_cut stdout 4 out
    fi
    if [ "$err_at" -gt "$err_size" ]; then
        err_size=$((err_size - err_cut + err_at)) err_cut=$err_at
        note_cut stderr 5 err
    fi
}

# Of stream $1, which fd $2 reads from file $3.
note_cut() {
    { [ -e "emptied.$1" ] ||
        echo "cronium: the script emptied its $1, as > /dev/$1 does; >> /dev/$1 would not" >>err
        true >"emptied.$1"
        echo "$out_cut $err_cut" >emptied
        command eval "exec $2<$3"; } 2>/dev/null
}

send_output() {
    [ -s out ] || [ -s err ] || return
    measure_streams
    send_waiting
}

send_waiting() {
    while [ "$out_at" -lt "$out_size" ] || [ "$err_at" -lt "$err_size" ]; do
        if [ "$out_at" -lt "$out_size" ]; then
            size_piece $((out_size - out_at))
            hold_text o out "$out_at" || { printf 'o %s\n' "$n" && send_piece <&4; } || exit 74
            out_at=$((out_at + n))
        fi
        if [ "$err_at" -lt "$err_size" ]; then
            size_piece $((err_size - err_at))
            hold_text e err "$err_at" || { printf '%se %s\n' "$held" "$n" && send_piece <&5 && held=''; } || exit 74
            err_at=$((err_at + n))
        fi
    done
}

# Most scripts print little, and that a shell can read itself: no program is started for it. But it drops NULs, and
# may count letters, so what it has read is taken only where it is as long as it should be. Held back for the frame of
# the end, as each write wakes sshd and the worker.
hold_text() {
    [ -n "$ended" ] && [ "$3" -eq 0 ] && [ "$n" -le "$most_text" ] && [ -f "$2" ] || return
    text='' line=''
    { while [ ${#text} -le "$n" ] && IFS= read -r line; do text=$text$line$newline; done <"$2"; } 2>/dev/null
    text=$text$line
    [ ${#text} -eq "$n" ] && held="$held$1 $n$newline$text"
}

size_piece() {
    n=$1
    [ "$n" -le "$piece" ] || n=$piece
    sent=$((sent + n))
}

choose_tick() {
    if [ "$sent" -gt 0 ]; then
        quiet_ms=0 tick=0.05 tick_ms=50
    else
        case $tick in
        0.05) tick=0.1 tick_ms=100 ;;
        0.1) tick=0.2 tick_ms=200 ;;
        0.2) tick=0.4 tick_ms=400 ;;
        0.4) tick=0.8 tick_ms=800 ;;
        *) tick=1 tick_ms=1000 ;;
        esac
    fi
    [ -z "$whole_seconds" ] || tick=1 tick_ms=1000
    quiet_ms=$((quiet_ms + tick_ms))
    if [ "$quiet_ms" -gt 10000 ]; then
        quiet_ms=$tick_ms
        printf 'k\n' || exit 74
    fi
    unlooked_ms=$((unlooked_ms + tick_ms))
    [ "$unlooked_ms" -lt 1000 ] && return
    unlooked_ms=0
    ! is_lost || declare_lost
}
whole_seconds=''

# Most runs end before there is a need to sleep, which takes a program: the supervisor says so, or its ticker says
# that this one has not. URG does not serve here: in some shells it ends no read, and in none a read that is only
# about to begin.
await_word() {
    trap : URG
    find_record || look_for_calls || IFS= read -r rest <&9
    trap '' URG
}

# Handling URG only around the wait loses no wake-up: whatever was signalled before is seen in the
# record, or in the calls.
pause() {
    if [ -n "$is_new" ]; then
        is_new=''
        await_word
        return
    fi
    # Without what a supervisor sees our end by.
    sleep "$tick" >/dev/null 8>&- 9<&- &
    sleeper=$!
    trap 'kill "$sleeper"' URG
    if find_record || look_for_calls; then
        kill "$sleeper"
    else
        wait "$sleeper"
        # Not every sleep takes fractions.
        [ $? -ne 1 ] || whole_seconds=1
    fi
    trap '' URG
}

signal_run() {
    cd "$run" 2>/dev/null || fail 66 "no run $id"
    ! find_record || exit 0
    is_elsewhere && fail 66 "the run is on host $owner_host, not here"
    # A name for a file that exists is to be had where a new file is not.
    { printf '' >"stop.$1"; } 2>/dev/null || mv -f began "stop.$1" 2>/dev/null || fail 73 "no room in $root"
    read_claim
    until find_record; do
        ! is_gone || fail 66 "no run $id"
        if supervisor_lives; then
            kill -s CONT "$supervisor" 2>/dev/null
            kill -s URG "$supervisor" 2>/dev/null
        elif is_lost; then
            declare_lost
        fi
        nap
    done
}

# For a run whose supervisor is gone without an exit record: ends what is left of it and says so.
declare_lost() {
    script_pid='' script_started=''
    read_cgroup
    if [ "$supervisor_boot" = "$boot" ]; then
        { read -r script_pid script_started <script; } 2>/dev/null
        end_tree "$script_pid" "$script_started"
    fi
    rm -rf in in.*
    measure_run
    record_exit "125.lost.$elapsed.0"
    [ -z "$cgroup" ] || leave_cgroup
}

# Sets cgroup from the run's record, which the script could have changed: it names what will be killed.
read_cgroup() {
    cgroup=''
    { IFS= read -r cgroup <"$run/cgroup"; } 2>/dev/null
    [ -n "$cgroup" ] || return
    # Of the call that started the run, which its token names.
    read_claim
    case $cgroup in *..*) cgroup='' ;; /sys/fs/cgroup/*"/cronium-${token%-*}-"*) ;; *) cgroup='' ;; esac
}

# In a name that is no call's until it is whole; where nobody waits any more it is dropped.
take_answer() {
    cd "$run" 2>/dev/null || fail 66 "no run $id"
    answer=answer.$$.$nonce
    cat >"$answer" 2>/dev/null || {
        rm -f "$answer"
        fail 73 "no room for the answer in $root"
    }
    # The end of a connection is the end of the input too. Some wc put blanks before the number.
    [ $(($(wc -c <"$answer"))) -eq "$2" ] || {
        rm -f "$answer"
        fail 74 'half an answer'
    }
    for path in calls*/"$1".req; do
        mv -f "$answer" "${path%.req}.ans" 2>/dev/null && return
    done
    rm -f "$answer"
}

# Sets complaint where it cannot.
forget_all() {
    complaint='bad argument'
    for id in "$@"; do check_id "$id" || return 64; done
    # The wait for this is no jump of the clock.
    refused='' gone='' last_s=''
    for id in "$@"; do
        if ! find_run; then
            is_forgotten || bury_unknown || return
        elif is_over; then
            bury || return
        else
            refused="$refused $id"
        fi
    done
    remove_gone
    complaint="still running:$refused"
    [ -z "$refused" ] || return 66
}

is_over() {
    [ -d "$run" ] && ! find_record "$run" || return 0
    read_claim
    is_lost || return 1
    (cd "$run" && declare_lost)
}

# The tombstone first: a start that looks for one after its claim then cannot miss it.
bury() {
    { [ -d "$root/forgotten" ] || mkdir "$root/forgotten"; } 2>/dev/null
    { printf '' >"$root/forgotten/$id"; } 2>/dev/null || {
        complaint="no room in $root"
        return 73
    }
    read_clock
    { printf '%s %s\n' "$boot" "$clock_s" >"$root/forgotten/$id"; } 2>/dev/null
    read_cgroup
    [ -z "$cgroup" ] || [ ! -d "$cgroup" ] || drop_cgroup
    gone="$gone $claim $run"
}

# What was buried, all by one program. Each claim goes first: a run with one, and without its exit record,
# would look lost.
remove_gone() {
    # shellcheck disable=SC2086  # paths, to be split
    [ -z "$gone" ] || rm -rf $gone
    gone=''
}
gone=''

bury_unknown() {
    for root in $roots; do
        is_ours "$root" || continue
        claim=$root/runs/$id run=$claim
        bury && remove_gone && return
    done
    complaint='no directory can be written'
    return 73
}

list_all() {
    read_clock
    for root in $roots; do
        is_ours "$root" || continue
        for claim in "$root"/runs/*; do
            id=${claim##*/}
            find_room && cd "$run" 2>/dev/null || continue
            state=running
            read_claim
            if find_record; then
                state=ended
            elif is_lost; then
                state=lost
            fi
            measure_spool
            measure_age
            printf '%s %s %s %s %s\n' "$id" "$state" "$age" "$out_size" "$err_size"
        done
    done
}

# Sets age, in s; by the time of day where there is no uptime, or it is that of another boot.
measure_age() {
    age=0 run_began=''
    { read -r run_began rest <began; } 2>/dev/null
    if [ -n "$uptime" ] && [ "$supervisor_boot" != "$boot" ]; then
        run_began=$(date -r began +%s 2>/dev/null)
        is_number "$run_began" && age=$(($(date +%s) - run_began))
    else
        is_number "$run_began" && age=$((clock_s - run_began))
    fi
    [ "$age" -ge 0 ] || age=0
}

# The janitor: what nobody forgot.

sweep() {
    root=$1
    read_clock
    find_nest
    touch "$0"
    make_searchable "$root/rooms" "$root/runs"
    # Former artifacts had all of a run where there are only claims now.
    for place in rooms runs; do
        cd "$root/$place" 2>/dev/null || continue
        bury_old
        drop_unclaimed
    done
    cd "$root" || return
    [ ! -d forgotten ] || find_old_tombs | xargs rm -f
    find . -path './*/*' -prune -o \( -name 'swept.*' -o -name '.new.*' -o -name '.pipe.*' \) ! -type d \
        -mtime +1 -exec rm -f {} +
    drop_artifacts
    # Those of starters that died, and of scripts whose children have left since.
    [ -z "$nest" ] || find "$nest"/cronium-* -depth -type d -mtime +1 -exec rmdir {} + 2>/dev/null
}

bury_old() {
    # Depth 2 only: below it are the scripts' own files.
    for path in $(find . -path './*/*/*' -prune -o -path './*/exit*' ! -name '*[!a-z0-9._]*' ! -type d \
        -mtime +7 -print); do
        take_path && is_claimed && find_record "$run" && ! is_elsewhere && ! is_young_run && bury
    done
    for path in $(find . -path './*/*/*' -prune -o \( -path './*/go' -o -path './*/for.*' \) ! -type d \
        -mtime +7 -print); do
        take_path && is_claimed && ! find_record "$run" && is_over
    done
    remove_gone
}

is_young_run() {
    read_claim
    run_began=''
    { read -r run_began rest <"$run/began"; } 2>/dev/null
    is_young "$supervisor_boot" "$run_began" 7
}

# True if boot $1 is this one and its uptime was $2 less than $3 days ago: the time of a file is only as
# good as the time of day was, and that may have jumped.
is_young() {
    [ "$1" = "$boot" ] && is_number "$2" || return 1
    age_s=$((clock_s - $2))
    [ "$age_s" -ge 0 ] && [ "$age_s" -lt $(($3 * 86400)) ]
}

# Sets name, run, id and claim; of a room that nobody was to start yet no id.
take_path() {
    name=${path#./} id=''
    name=${name%%/*}
    run=$root/$place/$name
    is_name "$name" || return
    make_searchable "$run"
    case $place in
    runs) id=$name claim=$run/go ;;
    *)
        for path in "$run"/for.*; do id=${path##*/for.}; done
        is_name "$id" || id=''
        claim=$root/runs/$id
        ;;
    esac
}

is_claimed() {
    if [ "$place" = runs ]; then
        [ -h "$claim" ]
    else
        read_room && [ "$room" = "$name" ]
    fi
}

# With claims of no room, or of one that was deleted with its supervisor.
drop_unclaimed() {
    for path in $(find . -path './*/*' -prune -o -type d -mtime +1 -print); do
        # Its starter may still be at it, if only the time of day says otherwise.
        take_path && ! is_claimed && ! kill -0 "${name%%-*}" 2>/dev/null && rm -rf "$run"
    done
    [ "$place" = runs ] || return
    for path in $(find . -path './*/*' -prune -o -type f \( -size 0 -mtime +1 -o -mtime +7 \) -print); do
        take_path && claim=$run && ! { find_room && [ -d "$run" ]; } && leave_tomb && rm -f "$claim"
    done
}

find_old_tombs() {
    for path in $(find forgotten -type f -mtime +30 -print); do
        tomb_boot='' tomb_s=''
        { read -r tomb_boot tomb_s <"$path"; } 2>/dev/null
        is_young "$tomb_boot" "$tomb_s" 30 || printf '%s\n' "$path"
    done
}

drop_artifacts() {
    used=' '
    for path in rooms/*/artifact runs/*/artifact; do
        { read -r starter <"$path"; } 2>/dev/null && used="$used$starter "
    done
    for path in $(find . -path './*/*' -prune -o -name 'runner-*' -type f -mtime +30 -print); do
        case $used in *" ${path##*-} "*) ;; *) rm -rf "$path" "helpers-${path##*-}" ;; esac
    done
}

main "$@"
exit
