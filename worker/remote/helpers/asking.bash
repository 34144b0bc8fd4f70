# shellcheck shell=bash
# How bash asks: read by cronium__ask of cronium.bash, in its subshell.

# Asks $1 with the arguments behind it, and prints the answer.
cronium__exchange() {
    cronium__request="{\"call\":\"$1\",\"form\":\"text\""
    cronium__add_arguments "$@"
    cronium__request+='}'
    [ ${#cronium__request} -lt 1047552 ] || cronium__fail 'a call may have no more than 1 MiB'
    cronium__folder=${CRONIUM_CALLS-}
    cronium__file=$cronium__folder/${BASHPID:-$$}.$RANDOM$RANDOM$RANDOM
    cronium__put 2>/dev/null || {
        command rm -f "$cronium__file.new"
        cronium__fail "nothing can be asked from here, where CRONIUM_CALLS is '$cronium__folder'"
    }
    # A hint; without it the call is found a little later.
    { read -r <"$cronium__folder/../attacher" && kill -s URG "${REPLY%%.*}"; } 2>/dev/null
    cronium__wait
    # Into REPLY, for any other name would lose blanks.
    { read -r cronium__status && read -r -d ''; } <"$cronium__file.ans"
    # What was said is kept, to be told to whoever attaches later.
    case $cronium__status.$1 in
    ok.output) command mv -f "$cronium__file.req" "$cronium__folder/output.said" ;;
    ok.setCondition) command mv -f "$cronium__file.req" "$cronium__folder/condition.said" ;;
    esac 2>/dev/null
    command rm -f "$cronium__file.req" "$cronium__file.ans"
    [ "$cronium__status" = ok ] || cronium__fail "$REPLY"
    case $1 in input | event | getVariable | executeToolAction) printf '%s\n' "$REPLY" ;; esac
}

cronium__fail() {
    printf 'cronium: %s\n' "$1" >&2
    exit 1
}

cronium__add_arguments() {
    case $1 in
    output)
        cronium__take_value "${@:2}"
        cronium__add dataText "$REPLY"
        ;;
    getVariable) cronium__add key "${2-}" ;;
    setVariable)
        cronium__take_value "${@:3}"
        cronium__add valueText "$REPLY"
        cronium__add key "${2-}"
        ;;
    setCondition) cronium__add condition "${2-}" ;;
    executeToolAction)
        cronium__add tool "${2-}"
        cronium__add action "${3-}"
        [ $# -lt 4 ] || cronium__add configText "$4"
        ;;
    esac
}

# Sets REPLY to the arguments, or to what stands on stdin where there are none.
cronium__take_value() {
    if [ $# -gt 0 ]; then
        REPLY=$*
    else
        read -r -d ''
        REPLY=${REPLY%$'\n'}
    fi
}

# Adds text $2 to the request as its member $1.
cronium__add() {
    REPLY=${2//\\/\\\\}
    REPLY=${REPLY//\"/\\\"}
    REPLY=${REPLY//$'\n'/\\n}
    REPLY=${REPLY//$'\r'/\\r}
    REPLY=${REPLY//$'\t'/\\t}
    case $REPLY in *[[:cntrl:]]*)
        for cronium__code in {1..31}; do
            printf -v cronium__code '%02x' "$cronium__code"
            printf -v cronium__character '%b' "\\x$cronium__code"
            REPLY=${REPLY//"$cronium__character"/\\u00$cronium__code}
        done
        ;;
    esac
    cronium__request+=",\"$1\":\"$REPLY\""
}

# Elsewhere than CRONIUM_CALLS nobody would ever answer.
cronium__put() {
    [ -d "$cronium__folder" ] && printf '%s\n' "$cronium__request" >"$cronium__file.new" &&
        command mv "$cronium__file.new" "$cronium__file.req"
}

# Until there is an answer: an eighth of the time waited so far between two looks, 5 to 250 ms.
cronium__wait() {
    cronium__waited=0 cronium__bell=''
    # Nothing ever comes there, so that to read is to sleep, without a process for it.
    [ "${BASH_VERSINFO[0]}" -lt 4 ] || { exec 9<> <(:) && cronium__bell=9; } 2>/dev/null
    until [ -e "$cronium__file.ans" ]; do
        if [ ! -e "$cronium__file.req" ] || compgen -G "$cronium__folder/../exit.*" >/dev/null; then
            cronium__fail 'the run has ended'
        fi
        cronium__pause=$((cronium__waited / 8))
        cronium__pause=$((cronium__pause < 5 ? 5 : cronium__pause > 250 ? 250 : cronium__pause))
        if [ -n "$cronium__bell" ]; then
            printf -v cronium__seconds '0.%03d' "$cronium__pause"
            read -r -t "$cronium__seconds" -u "$cronium__bell"
        else
            sleep 0.1
            cronium__pause=100
        fi
        cronium__waited=$((cronium__waited + cronium__pause))
    done
}
