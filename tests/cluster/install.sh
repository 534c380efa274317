#!/bin/bash
# install.sh [USER]: what the cluster tests need, on Debian 12 as root: Slurm, munge, Apptainer, and a user without
# privileges (default: unlearn). Packages come from the mirrors of apt's own settings. A second run changes nothing.
# Exits with 3 and the reason where it does not apply.
set -euo pipefail
user=${1:-unlearn}

refuse() { echo "install.sh: $*" >&2; exit 3; }
. /etc/os-release
[ "$(id -u)" = 0 ] || refuse "needs root"
[ "$ID $VERSION_ID" = "debian 12" ] || refuse "needs Debian 12, this is $PRETTY_NAME"
[ "$(dpkg --print-architecture)" = amd64 ] || refuse "needs amd64, this is $(dpkg --print-architecture)"
export DEBIAN_FRONTEND=noninteractive

# squashfuse mounts an image in a fraction of a second; without it Apptainer unpacks the image at every start.
packages=(slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core debootstrap squashfs-tools squashfuse fuse3 uidmap fakeroot patchelf
    python3-venv libseccomp2 libsqlite3-0 ca-certificates git make procps)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
done
scratch=$(mktemp -d)
policy=/usr/sbin/policy-rc.d
trap 'rm -rf "$scratch"; [ ! -e "$scratch.policy" ] || rm -f "$policy" "$scratch.policy"' EXIT
if [ ${#missing[@]} -gt 0 ]; then
    # The tests start these services themselves, with their own configuration.
    if [ ! -e $policy ]; then
        touch "$scratch.policy"
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod 755 $policy
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

# Apptainer is in Debian's sid, not in Debian 12. Of what it needs, Debian 12 lacks only a newer libc, which is put
# beside the system's own and used by Apptainer alone. These two packages are taken with lists of their own.
if ! apptainer version > /dev/null 2>&1; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | sort -u | head -n 1)
    [ -n "$mirror" ] || refuse "apt's settings name no mirror with the suite bookworm"
    mkdir -p "$scratch"/{lists,archives}/partial "$scratch"/{none,apptainer,libc}
    printf 'deb %s sid main\ndeb %s trixie main\n' "$mirror" "$mirror" > "$scratch/sources.list"
    apt=(apt-get -qq -o "Dir::Etc::sourcelist=$scratch/sources.list" -o "Dir::Etc::sourceparts=$scratch/none"
        -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache::archives=$scratch/archives" -o "Dir::Cache::pkgcache="
        -o "Dir::Cache::srcpkgcache=" -o Acquire::Languages=none)
    chmod 755 "$scratch"
    (cd "$scratch" && chmod 777 . && "${apt[@]}" update && "${apt[@]}" download apptainer/sid libc6/trixie)
    dpkg-deb -x "$scratch"/apptainer_*.deb "$scratch/apptainer"
    dpkg-deb -x "$scratch"/libc6_*.deb "$scratch/libc"
    libraries=/usr/lib/x86_64-linux-gnu
    loader=/opt/apptainer/lib
    rm -rf $loader && mkdir -p $loader
    cp -a "$scratch/libc$libraries"/*.so* $loader/
    cp -a "$scratch/apptainer$libraries/apptainer" $libraries/
    [ -d /etc/apptainer ] || cp -a "$scratch/apptainer/etc/apptainer" /etc/
    mkdir -p /var/lib/apptainer
    cp -an "$scratch/apptainer/var/lib/apptainer/." /var/lib/apptainer/
    # The program itself last: an installation that was cut short is done again.
    for binary in "$scratch/apptainer/usr/bin/apptainer" $libraries/apptainer/bin/starter; do
        patchelf --set-interpreter $loader/ld-linux-x86-64.so.2 --force-rpath --set-rpath $loader "$binary"
    done
    cp -a "$scratch/apptainer/usr/bin/apptainer" /usr/bin/apptainer
fi
apptainer version > /dev/null

[ -e /dev/fuse ] || mknod /dev/fuse c 10 229
chmod 666 /dev/fuse # so that a user without privileges can mount an image
# useradd also writes the user's ranges in /etc/subuid and /etc/subgid, which building an image needs.
id "$user" > /dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
grep -q "^$user:" /etc/subuid || usermod --add-subuids 200000-265535 --add-subgids 200000-265535 "$user"
runuser -u "$user" -- unshare --user --mount true ||
    refuse "$user may not make user namespaces here, which Apptainer needs"
