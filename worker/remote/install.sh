#!/bin/sh
# Puts the runner on this server. The worker fills in the names between at signs and sends the whole as the
# standard input of `sh`, artifact included: a shell may read ahead, so nothing can follow on the same input.
# shellcheck disable=SC3067  # test -O: not in POSIX, but in every shell this must run under

nonce='@NONCE@'
name='@NAME@'
sha256='@SHA256@'

main() {
    umask 077
    trap 'rm -f "${new:-}"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    uid=$(id -u)
    candidates="/var/tmp/cronium-$uid /tmp/cronium-$uid"
    case ${HOME-} in
    *[!A-Za-z0-9._/-]*) ;;
    /*) candidates="${HOME%/}/.cache/cronium $candidates" ;;
    esac
    why=''
    for root in $candidates; do
        try_root && deployed
    done
    failed 73 "no directory for the runner:$why"
}

# Returns 1, with the reason added to why, where another root may do; does not return after a refusal.
try_root() {
    if [ -e "$root" ] || [ -h "$root" ]; then refuse_foreign; fi
    mkdir -p "$root" 2>/dev/null || {
        why="$why $root cannot be made;"
        return 1
    }
    # Whoever may write beside the root could have put one there meanwhile.
    refuse_foreign
    chmod 700 "$root" 2>/dev/null
    if [ -f "$root/$name" ] && is_whole "$root/$name"; then
        unpack_helpers
        return
    fi
    new=$root/.new.$$.$nonce
    write_artifact 2>/dev/null || {
        rm -f "$new"
        why="$why $root cannot be written or is full;"
        return 1
    }
    is_whole "$new" || {
        rm -f "$new"
        why="$why what was written to $root has a wrong digest;"
        return 1
    }
    mv -f "$new" "$root/$name" 2>/dev/null || {
        rm -f "$new"
        why="$why $root cannot be written;"
        return 1
    }
    unpack_helpers
}

# The artifact carries them, and knows how.
unpack_helpers() {
    sh "$root/$name" +unpack "$nonce" 2>/dev/null || {
        why="$why $root has no room for the helpers;"
        return 1
    }
}

refuse_foreign() {
    [ ! -h "$root" ] || failed 69 "$root is a link: refused"
    { [ -d "$root" ] && [ -O "$root" ]; } || failed 69 "$root is not a directory of ours: refused"
}

deployed() {
    printf '\ncronium d %s %s\n' "$nonce" "$root/$name"
    exit 0
}

failed() {
    printf '\ncronium f %s %s\n' "$nonce" "$2"
    exit "$1"
}

is_whole() {
    if command -v sha256sum >/dev/null 2>&1; then sum=$(sha256sum <"$1")
    elif command -v shasum >/dev/null 2>&1; then sum=$(shasum -a 256 <"$1")
    elif command -v sha256 >/dev/null 2>&1; then sum=$(sha256 -q <"$1")
    elif command -v openssl >/dev/null 2>&1; then sum=$(openssl dgst -sha256 <"$1")
    else sum=$(busybox sha256sum <"$1" 2>/dev/null); fi
    # "hex  -" by most, "SHA2-256(stdin)= hex" by openssl
    case $sum in *'= '*) sum=${sum##*= } ;; *) sum=${sum%% *} ;; esac
    # No tool: a shell that can read it to the end is the check that is left.
    if [ -z "$sum" ]; then sh -n "$1" 2>/dev/null; else [ "$sum" = "$sha256" ]; fi
}

write_artifact() {
    cat >"$new" <<'CRONIUM_END_OF_ARTIFACT'
@ARTIFACT@
CRONIUM_END_OF_ARTIFACT
}

main
