#!/bin/sh
# Installs, from Debian, the programs that tests use as real peers; only what is missing. As root, or with sudo.
set -eu

wanted="orthanc orthanc-dicomweb dcmtk chromium iproute2 postgresql fonts-dejavu-core"
missing=""
for package in $wanted; do
    if ! dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
if [ -z "$missing" ]; then
    exit 0
fi

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo"
fi
echo "Installing$missing ..."
# No service may start by itself: each test starts what it needs, on ports of its own.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod +x "$policy"
    made=yes
fi
export DEBIAN_FRONTEND=noninteractive
code=0
{ $as_root apt-get -q update && $as_root apt-get -q -y --no-install-recommends install $missing; } >/tmp/hemolens-apt.log 2>&1 || code=$?
if [ -n "$made" ]; then
    $as_root rm -f "$policy"
fi
if [ "$code" -ne 0 ]; then
    tail -20 /tmp/hemolens-apt.log >&2
    exit "$code"
fi
