# Completion of ./scripts/* for bash and zsh: source scripts/completion.bash
# The words come from each verb's own --help at the moment, so they are never behind.
if [ -n "${ZSH_VERSION:-}" ]; then
    autoload -U +X compinit bashcompinit
    type compdef >/dev/null 2>&1 || compinit -u -D
    bashcompinit
fi

_slipway() {
    local verb=${COMP_WORDS[0]} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words
    case $before in
    --client) words="all $("$verb" --list-clients 2>/dev/null | sed 's/ .*//')" ;;
    *)
        # `lab new` has options of its own
        case "${verb##*/} ${COMP_WORDS[1]}" in lab\ [a-z]* | tokens\ [a-z]* | invite\ [a-z]*) before=${COMP_WORDS[1]} ;; *) before= ;; esac
        [ "$COMP_CWORD" -gt 1 ] || before=
        words=$("$verb" ${before:+"$before"} --help 2>/dev/null |
            sed -nE 's/^ {2,4}([a-z][a-z-]*)(  .*)?$/\1/p; s/^ +(-[a-z], )?(--[a-z-]+).*/\2/p')
        ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}

for _slipway_verb in audit audit-deps bench break check docs doctor down help invite lab lock mint rehearse sbom swarm \
    test tokens up venv; do
    # zsh looks for ./up as $PWD/./up
    complete -o default -F _slipway {,./,"$PWD/./"}"scripts/$_slipway_verb"
done
unset _slipway_verb
