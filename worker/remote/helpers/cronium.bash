# shellcheck shell=bash
# What a bash script may ask of Cronium. Every bash reads this before its script, by BASH_ENV.
# A request is a file in CRONIUM_CALLS, and so is its answer: the runner carries them.
# Whatever the script has set must not matter: options, IFS, names of its own that are readonly.

# What BASH_ENV was before it named this file; bash expands its value, too.
if [ -n "${CRONIUM_BASH_ENV-}" ] && [ -z "${cronium__chained-}" ]; then
    cronium__chained=1
    eval "cronium__file=\"$CRONIUM_BASH_ENV\""
    # shellcheck source=/dev/null disable=SC2154  # eval has set it
    [ ! -r "$cronium__file" ] || . "$cronium__file"
    unset cronium__chained cronium__file
fi

cronium.input() { cronium__ask input; }
cronium.event() { cronium__ask event; }
cronium.output() { cronium__ask output "$@"; }
cronium.getVariable() { cronium__ask getVariable "$@"; }
cronium.setVariable() { cronium__ask setVariable "$@"; }
cronium.setCondition() { cronium__ask setCondition "$@"; }
cronium.executeToolAction() { cronium__ask executeToolAction "$@"; }

cronium_input() { cronium__ask input; }
cronium_event() { cronium__ask event; }
cronium_output() { cronium__ask output "$@"; }
cronium_get_variable() { cronium__ask getVariable "$@"; }
cronium_set_variable() { cronium__ask setVariable "$@"; }
cronium_set_condition() { cronium__ask setCondition "$@"; }
cronium_execute_tool_action() { cronium__ask executeToolAction "$@"; }

# Asks $1 with the arguments behind it, and prints the answer, or says on stderr why there is none.
# In a subshell, which leaves the script as it is.
cronium__ask() (
    { set +euvxC +o posix; } 2>/dev/null
    shopt -u expand_aliases
    trap - DEBUG ERR RETURN
    # Words are joined by blanks, and texts are bytes; what is readonly stays as it is.
    unset IFS 2>/dev/null
    ! unset LC_ALL 2>/dev/null || LC_ALL=C
    # Not before it is needed, as most scripts ask for nothing.
    # shellcheck source=/dev/null
    . "${BASH_SOURCE[0]%/*}/asking.bash" && cronium__exchange "$@"
)
