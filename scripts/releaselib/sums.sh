# shellcheck shell=bash
# The list of the files of a release, and whether it says what is there. Sourced
# by those who sign and who verify.

# What a signature of ours is for.
# shellcheck disable=SC2034
NAMESPACE=sealblk-release

# check_sums DIR: ends the script unless DIR/SHA256SUMS names every file in DIR
# and each is what it says. A name with a slash in it would point elsewhere.
check_sums() {
    local sums=$1/SHA256SUMS listed present
    [[ -f $sums && ! -L $sums ]] || die "$1 has no SHA256SUMS" "build the release with scripts/release-build"
    ! grep -vE '^[0-9a-f]{64}  [A-Za-z0-9][A-Za-z0-9._+-]*$' -- "$sums" >&2 ||
        die "$sums has a line that is no digest and plain name (above)" "do not use these files"
    listed=$(cut -c 67- "$sums" | sort)
    [[ -n $listed && $(sort -u <<<"$listed") == "$listed" ]] ||
        die "$sums names nothing, or a file twice" "do not use these files"
    present=$(find "$1" -mindepth 1 -printf '%y %P\n' | grep -vxE 'f SHA256SUMS(\.sig)?' | sort)
    [[ $present == "$(sed 's/^/f /' <<<"$listed")" ]] ||
        die "what is in $1 is not what SHA256SUMS names: $(
            diff <(sed 's/^/f /' <<<"$listed") <(printf '%s\n' "$present") | grep '^[<>]' | tr '\n' ' '
        )" "remove what does not belong there, and download what is missing"
    (cd -- "$1" && sha256sum --check --strict --quiet SHA256SUMS >&2) ||
        die "a file in $1 is not what SHA256SUMS says" "do not use it; download it again"
}
