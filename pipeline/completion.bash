# Completes overrides of `python -m pipeline`. Use: eval "$(python -m pipeline -sc install=bash)"
_interpipe_completion() {
    if [ "${COMP_WORDS[1]}" != "-m" ] || [ "${COMP_WORDS[2]}" != "pipeline" ]; then
        COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
        return
    fi
    local line="pipeline ${COMP_LINE#*-m pipeline}"
    local word="${COMP_LINE:0:COMP_POINT}"
    word="${word##* }"
    local choices
    choices=$(COMP_LINE="$line" COMP_POINT="${#line}" "${COMP_WORDS[0]}" -m pipeline -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _interpipe_completion python python3
