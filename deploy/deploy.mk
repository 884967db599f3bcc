# Targets of deployment, which the Makefile includes: images, the chart, wheels, a release, and what checks them.
# README.md beside this file says what each file of this folder is.

BUILD ?= docker build
ENGINE ?= $(firstword $(BUILD))
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LABELS := --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(LENGTHWISE_PROJECT_URL)

.PHONY: lock dashboard dashboard-picture manifests image image-cuda push image-index sbom chart chart-push wheel wheels wheelhouse deploy-tools deploy-check deploy-quick arm site-archive version release

lock: .venv/.development ## Locks what goes into the image, keeping pins; UPGRADE=1 takes the newest
	$(BIN)/python deploy/image/lock.py $(if $(UPGRADE),--upgrade)

dashboard: .venv/.development ## Makes the Grafana dashboard
	$(BIN)/python deploy/grafana/dashboard.py

dashboard-picture: .venv/.development ## Draws docs/dashboard.png: two minutes of load on a service that a Prometheus watches
	$(BIN)/python -m tests.deploy.dashboard_picture

manifests: .venv/.development ## Makes the chart's schema of options, and deploy/kubernetes/lengthwise.yaml (after make deploy-tools)
	$(BIN)/python deploy/helm/schema.py
	$(BIN)/python deploy/helm/manifest.py

image: ## Builds the image lengthwise:VERSION; BUILD="buildah bud --format docker" builds without docker
	$(BUILD) --target cpu $(LABELS) --tag lengthwise:$(VERSION) .

image-cuda: ## Builds the image lengthwise:VERSION-cuda
	$(BUILD) --target cuda $(LABELS) --tag lengthwise:$(VERSION)-cuda .

PUSHED = $(REGISTRY)/lengthwise:$(VERSION)$(VARIANT)

push: ## Pushes the image: REGISTRY=registry.example.com/team; VARIANT=-cuda the GPU's; ENGINE=buildah without docker; ARCH=-arm64 for image-index
	@test -n "$(REGISTRY)" || { echo "say where to: make push REGISTRY=registry.example.com/team"; exit 2; }
	$(ENGINE) tag lengthwise:$(VERSION)$(VARIANT) $(PUSHED)$(ARCH)
	$(ENGINE) push $(PUSHED)$(ARCH)

image-index: ## Makes one tag of the images that were pushed with ARCH=-amd64 and ARCH=-arm64: REGISTRY=...; ENGINE=buildah without docker
	@test -n "$(REGISTRY)" || { echo "say where: make image-index REGISTRY=registry.example.com/team"; exit 2; }
ifneq (,$(findstring buildah,$(ENGINE)))
	-$(ENGINE) manifest rm $(PUSHED) 2> /dev/null
	$(ENGINE) manifest create $(PUSHED)
	$(ENGINE) manifest add --arch amd64 $(PUSHED) $(PUSHED)-amd64
	$(ENGINE) manifest add --arch arm64 $(PUSHED) $(PUSHED)-arm64
	$(ENGINE) manifest push $(PUSH_OPTIONS) --all $(PUSHED) docker://$(PUSHED)
else
	$(ENGINE) buildx imagetools create --tag $(PUSHED) $(PUSHED)-amd64 $(PUSHED)-arm64
endif
	$(if $(GITHUB_OUTPUT),echo "digest=$$($(ENGINE) buildx imagetools inspect $(PUSHED) --format '{{.Manifest.Digest}}')" >> $(GITHUB_OUTPUT))

chart-push: chart ## Pushes the chart as an OCI artifact: REGISTRY=registry.example.com/team (with the helm command)
	@test -n "$(REGISTRY)" || { echo "say where to: make chart-push REGISTRY=registry.example.com/team"; exit 2; }
	helm push dist/lengthwise-$(VERSION).tgz oci://$(REGISTRY)/charts

sbom: ## Writes the image's bill of materials to dist/sbom.json (CycloneDX)
	$(BUILD) --target sbom --output type=local,dest=dist .
	$(if $(ARCH),mv dist/sbom.json dist/sbom$(ARCH).json)

chart: .venv/.development ## Packs the Helm chart into dist (after make deploy-tools)
	mkdir -p dist
	$(BIN)/python -c 'import helm_python; print(helm_python.package("deploy/helm/lengthwise", destination="dist"))'

wheels: .venv/.development ## Makes what a package index takes into dist: source, a wheel for this platform, one for all
	$(BIN)/python deploy/wheels.py dist

# EXTRAS=serve,cpu,parquet: what that machine has to have besides.
EXTRAS ?= serve,cpu
WHEELHOUSE ?= dist/wheelhouse

wheelhouse: .venv/bin/python ## Collects what an installation without a package index needs into dist/wheelhouse: EXTRAS=serve,cpu
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir $(WHEELHOUSE) '.[$(EXTRAS)]'

wheel: .venv/.development ## Builds this machine's wheel into dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

deploy-tools: .venv/.development ## Installs what deploy-check can get from pip and npm into .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[deploy]'
	mkdir -p .venv/npm && cp tests/deploy/package.json .venv/npm/ && npm install --silent --prefix .venv/npm

deploy-check: .venv/.development ## Runs every check of deploy that this machine can; says what it skips and why
	$(BIN)/python -m pytest tests/deploy -m "deploy or not deploy" -v -rs --tb=short

# As root this installs what apt has. What is missing is skipped, and said; what hangs fails.
DEPLOY_SECONDS ?= 900
DEPLOY_PACKAGES := buildah podman runc debootstrap prometheus

deploy-quick: .venv/.development ## What .ci/run runs of deploy-check: chart, rules and live Prometheus, then the image (3 minutes)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		timeout 180 sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends $(DEPLOY_PACKAGES)' > /dev/null 2>&1 \
		|| echo "skipped: apt-get could not install $(DEPLOY_PACKAGES)"; fi & \
	timeout 180 $(BIN)/python -m pip install --quiet --disable-pip-version-check 'helm-python-sdk>=0.2' 'kubernetes-validate>=1.37' \
		|| echo "skipped: no Helm from the package index"; wait
	@timeout $(DEPLOY_SECONDS) $(BIN)/python -m pytest tests/deploy/test_kubernetes.py tests/deploy/test_deployment_document.py \
		tests/deploy/test_prometheus.py tests/deploy/test_live_prometheus.py tests/deploy/test_image.py -q -rs --numprocesses 2 --dist loadfile \
		-m "deploy or not deploy" -k "not needs_no_index and not is_printed_serves and (not test_image or answers_as_its_user or answers_every_accepted)"

arm: .venv/.development ## Builds the wheel for Linux on ARM, and tests its kernels in an emulated processor (apt-get install qemu-user-static)
	$(BIN)/python -m pytest tests/deploy/test_arm64.py -m deploy -q -rs

version: .venv/bin/python ## Writes the next version wherever the current one stands, and cuts the changelog: NEW=0.3.0
	@test -n "$(NEW)" || { echo "say which: make version NEW=0.3.0"; exit 2; }
	$(BIN)/python deploy/release.py version '$(NEW)'

site-archive: site ## Packs the site into dist
	mkdir -p dist && rm -f dist/site.zip
	cd runs/site/html && $(CURDIR)/$(BIN)/python -m zipfile -c $(CURDIR)/dist/site.zip .

# In CI other machines have made the files; PREBUILT=1 takes them from dist.
release: .venv/.development $(if $(PREBUILT),,wheels chart site-archive) ## Builds the release of the tag TAG and publishes it with its section of the changelog; DRY_RUN=1 stops before that
	$(BIN)/python deploy/release.py list '$(TAG)'
	@$(if $(DRY_RUN),echo "dry run; what is left to do:" && echo) gh release create '$(TAG)' --notes-file dist/notes.md dist/SHA256SUMS dist/*.whl dist/*.tar.gz dist/*.tgz dist/*.zip $(wildcard dist/sbom*.json)
