# SPDX-License-Identifier: GPL-2.0-only
# `make` explains. Everything but `install` happens in a chroot and in VMs, never on this machine.

# The modules are built for every target. The VM cases run on the first, with KERNELS=all on every one; all else runs on
# the first.
EVERY := trixie sid
FIRST := trixie
TARGETS := $(if $(filter all,$(KERNELS)),$(EVERY),$(FIRST))

.PHONY: help demo test test-host fuzz test-vm test-powercut test-debian test-stress test-debug powercut stress build-every module tools setup install deb bundle clean distclean
help:
	@echo "make demo            run the backup cycle in a VM, with a transcript"
	@echo "make test            all tests: host tests and VM tests (KERNELS=all: the VM cases on both kernels)"
	@echo "make test-vm CASES=cycle   only the VM cases whose names contain a word. LONG=1: at length, for hours;"
	@echo "                     SLOW=4: on a machine on which everything takes so much longer"
	@echo "make fuzz FUZZ_SECONDS=600  COW files and private blocks of any content, guided by coverage"
	@echo "make test-debian     the packages in a Debian VM with systemd: install, reboots, crashes; KILLS=10: kills"
	@echo "make test-packages   the packages in a chroot: install, both makers of an initramfs, upgrade, removal, DKMS;"
	@echo "                     and make install"
	@echo "make powercut        cut the power at 200 places (N=...), no changed block may be missed after any"
	@echo "                     QUICK=1: a few; SEED=...: other ones; FAULT=6: the counter-test"
	@echo "make stress          hours under load, errors, memory pressure and hostile callers (HOURS=1); goes on where"
	@echo "                     it was stopped. ONLY=s4 SEED=7 COUNT=100 ROUNDS=1 FRESH=1: one program, again"
	@echo "make test-stress     a few minutes of it, in make test"
	@echo "make bench           ratios to the bare device, beside dm-snapshot, dm-thin and dm-era: docs/benchmarks. Goes on where"
	@echo "                     it was stopped. QUICK=1: ten minutes instead of ninety, report in target/bench/quick; FRESH=1"
	@echo "make test-debug      all cases and the short stress programs on a kernel with KASAN, lockdep, kmemleak and more,"
	@echo "                     which is built first: hours, not in make test. Goes on where it was stopped."
	@echo "                     ONLY=\"d1 t18\" JOBS=2 SLOW=6 SEED=7 FRESH=1"
	@echo "make module          build the module for the packaged target kernel"
	@echo "make module KDIR=/lib/modules/\$$(uname -r)/build"
	@echo "                     build it for this machine's kernel, in place"
	@echo "make install KDIR=...  install that module and the tools on this machine"
	@echo "make deb             Debian packages of tools, module and module source, in target/deb"
	@echo "make bundle          the packages of all kernels and an installer that needs no network, in one file"
	@echo "make clean           forget what was built; distclean: the cached chroots and kernels too"

setup:
	@for t in $(TARGETS); do scripts/kernel.sh $$t || exit 1; done
	@scripts/vm-image.sh $(FIRST)

ifdef KDIR
module:
	@scripts/kdir.sh $(KDIR)
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules
tools:
	@command -v cargo >/dev/null || { echo "error: cargo is missing: apt install cargo"; exit 1; }
	cargo build --release --locked -p dbdctl -p update-img
else
module: setup
	@for t in $(TARGETS); do scripts/build-module.sh $$t || exit 1; done
tools: setup
	@scripts/build-tools.sh $(FIRST)
endif

demo: module tools
	@scripts/stage-modules.sh $(FIRST)
	@scripts/demo.sh

test: build-every test-host test-vms test-stress

# Both kernels must take the module, also where only the first one is booted.
build-every:
	@for t in $(EVERY); do \
	    scripts/kernel.sh $$t && scripts/build-module.sh $$t && scripts/build-test-modules.sh $$t || exit 1; \
	done

test-host: setup
	@scripts/test-host.sh $(FIRST)

# For so many seconds each; what was learnt is kept for the next time.
FUZZ_SECONDS ?= 600
fuzz: setup
	@SEED=$(SEED) tests/host/fuzz.sh $(FIRST) $(FUZZ_SECONDS)

READY_ON = scripts/build-module.sh $(1) faults && scripts/build-test-modules.sh $(1) && scripts/stage-modules.sh $(1) && \
    scripts/vm-image.sh $(1)
CASES_ON = DBD_TARGET=$(1) scripts/vm.sh test $(CASES)
test-vm: module tools
	@for t in $(TARGETS); do $(call READY_ON,$$t) && $(call CASES_ON,$$t) || exit 1; done

# The packages in a Debian with its own systemd, over reboots and crashes.
DEBIAN = QUICK=$(QUICK) KILLS=$(KILLS) BOOTS=$(BOOTS) SEED=$(SEED) tests/debian/run.sh $(FIRST)
test-debian: deb
	@$(DEBIAN)

# That, a few power cuts and the VM cases, side by side, two VMs at once in all; then the cases on the other kernels.
.PHONY: test-vms only-debian only-powercut only-cases
test-vms: deb
	@$(call READY_ON,$(FIRST)) && tests/debian/image.sh $(FIRST)
	DBD_LANES=2 $(MAKE) --jobs=3 QUICK=1 only-debian only-powercut only-cases
	@for t in $(filter-out $(FIRST),$(TARGETS)); do $(call READY_ON,$$t) && $(call CASES_ON,$$t) || exit 1; done
only-debian:
	@$(DEBIAN)
only-powercut:
	@$(POWERCUT)
# A moment later: the two others take long in one piece each, and are to have their places first.
only-cases:
	@sleep 5; $(call CASES_ON,$(FIRST))

deb: module tools
	@scripts/deb.sh $(TARGETS)

# Installation, upgrade, removal, initramfs makers, DKMS and `make install`, in a throw-away layer over the build chroot.
.PHONY: test-packages
test-packages: deb
	@tests/host/packages.sh $(FIRST)

# For every target kernel, whatever KERNELS says: one file for all machines.
bundle: build-every tools
	@scripts/deb.sh $(EVERY)
	@scripts/bundle.sh

# A few cuts of one recording; `make powercut` makes many.
test-powercut:
	$(MAKE) powercut QUICK=1

# Goes on where it was stopped; results and recordings are in target/powercut. The whole of it also kills the
# Debian VM KILLS times.
N ?= $(if $(QUICK),5,200)
SEED ?= 1
POWERCUT = scripts/powercut.sh --cuts $(N) --seed $(SEED) $(if $(QUICK),--fs ext4 --again 0 --rounds 1 --lives 2) \
    $(if $(FAULT),--fault $(FAULT) --work /dattobd/target/powercut-fault)
powercut: KILLS ?= 10
powercut: module tools $(if $(QUICK)$(FAULT),,deb)
	@$(if $(FAULT),scripts/build-module.sh $(FIRST) faults)
	@scripts/stage-modules.sh $(FIRST)
	@scripts/vm-image.sh $(FIRST)
	@$(if $(QUICK)$(FAULT),,$(DEBIAN))
	@$(POWERCUT)

# The programs of tests/stress, one VM each. SLOW=4: a kernel or machine on which everything takes so much longer.
STRESS_FLAGS = --seed $(SEED) $(if $(COUNT),--count $(COUNT)) $(if $(FRESH),--fresh) $(if $(FAULT),--fault $(FAULT)) \
    $(if $(SLOW),--slow $(SLOW)) $(if $(JOBS),--jobs $(JOBS)) $(ONLY)
.PHONY: stress-ready
stress-ready: module tools
	@scripts/build-module.sh $(FIRST) faults && scripts/stage-modules.sh $(FIRST) && scripts/vm-image.sh $(FIRST)
stress: stress-ready
	@scripts/stress.sh $(if $(HOURS),--hours $(HOURS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(STRESS_FLAGS)
test-stress: stress-ready
	@scripts/stress.sh --short $(STRESS_FLAGS)

# What the engine costs (tests/bench).
.PHONY: bench
bench: module tools
	@scripts/build-module.sh $(FIRST) faults
	@scripts/build-test-modules.sh $(FIRST) && scripts/stage-modules.sh $(FIRST) && scripts/vm-image.sh $(FIRST)
	@scripts/bench.sh $(if $(QUICK),--quick) $(if $(FRESH),--fresh) $(BENCH_FLAGS)

# Everything once on a kernel that watches itself (tests/debug). Not in `make test`: the kernel alone takes half an
# hour to build, and everything runs ten times as long on it.
test-debug: tools
	@scripts/test-debug.sh $(FIRST) --seed $(SEED) $(if $(FRESH),--fresh) $(if $(SLOW),--slow $(SLOW)) \
	    $(if $(JOBS),--jobs $(JOBS)) $(ONLY)

PREFIX ?= /usr/local
install:
	@test -n "$(KDIR)" || { echo "usage: make install KDIR=/lib/modules/\$$(uname -r)/build"; exit 1; }
	$(MAKE) module tools KDIR=$(KDIR)
	@# Debian's signing key is not for us: the README says how to sign with one's own.
	@# A compressed module could not be signed as the README has it.
	$(MAKE) -C $(KDIR) M=$(CURDIR) CONFIG_MODULE_SIG_ALL= CONFIG_MODULE_COMPRESS_ALL= modules_install
	depmod -a "$$(cat $(KDIR)/include/config/kernel.release)"
	install -D -m755 -t $(DESTDIR)$(PREFIX)/sbin target/release/dbdctl target/release/update-img
	install -D -m644 -t $(DESTDIR)/etc/udev/rules.d dist/udev/*.rules
	install -D -m755 -t $(DESTDIR)$(PREFIX)/sbin dist/sbin/datto_reload
	install -d $(DESTDIR)/etc/datto/dla
	install -D -m755 -t $(DESTDIR)/etc/initramfs-tools/hooks dist/initramfs-tools/hooks/dattobd
	install -D -m755 -t $(DESTDIR)/etc/initramfs-tools/scripts/local-premount \
	    dist/initramfs-tools/scripts/local-premount/dattobd
	if [ -d $(DESTDIR)/usr/lib/dracut/modules.d ]; then \
	    install -D -m755 -t $(DESTDIR)/usr/lib/dracut/modules.d/90dattobd dist/dracut/90dattobd/*.sh; fi
	install -D -m644 -t $(DESTDIR)/etc/modules-load.d dist/modules-load.d/dattobd.conf
	install -D -m644 -t $(DESTDIR)/etc/systemd/system dist/systemd/dattobd-reload.service
	sed -i 's|/usr/sbin/|$(PREFIX)/sbin/|' $(DESTDIR)/etc/systemd/system/dattobd-reload.service
	@if man=$$(mktemp -d) && target/release/dbdctl man $$man; then \
	    install -D -m644 -t $(DESTDIR)$(PREFIX)/share/man/man8 $$man/*.8; rm -r $$man; fi
	@completion() { file=$$(mktemp) && target/release/dbdctl completions $$1 >$$file && \
	    install -D -m644 $$file "$(DESTDIR)$(PREFIX)/share/$$2" && rm $$file; }; \
	completion bash bash-completion/completions/dbdctl && completion zsh zsh/site-functions/_dbdctl && \
	completion fish fish/vendor_completions.d/dbdctl.fish
	@echo "To pick up tracked devices at boot: systemctl daemon-reload && systemctl enable dattobd-reload;" \
	    "udevadm control --reload; update-initramfs -u (or dracut -f)"

clean:
	rm -rf target
distclean: clean
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/dattobd"
