"""The Kubernetes manifests: of the schema, bare of rights, with settings that there are, named by kustomizations."""

import pytest
import yaml

from tapline.service.settings import Settings
from tests.deployment.settings_named import misspelt_settings, unknown_flags
from tests.paths import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.31", "1.37")
KUSTOMIZATIONS = sorted(FOLDER.glob("*/kustomization.yaml"))
MANIFESTS = sorted(path for path in FOLDER.glob("*/*.yaml") if path not in KUSTOMIZATIONS)


@pytest.fixture(scope="module")
def schemas():
    """What checks manifests by the schemas of Kubernetes; a second passes while it is loaded."""
    import kubernetes_validate

    return kubernetes_validate


def objects(folder):
    found = [yaml.safe_load(path.read_text()) for path in MANIFESTS if path.parent == folder]
    return {thing["kind"]: thing for thing in found}


def containers():
    for folder in ("service", "sensor"):
        for kind, thing in objects(FOLDER / folder).items():
            if kind in ("StatefulSet", "DaemonSet"):
                spec = thing["spec"]["template"]["spec"]
                for container in spec.get("initContainers", []) + spec["containers"]:
                    yield folder, spec, container


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_manifests_are_of_the_schema(schemas, path, version):
    schemas.validate(yaml.safe_load(path.read_text()), version, strict=True)


def test_a_manifest_of_a_misspelt_field_is_none(schemas):
    manifest = yaml.safe_load((FOLDER / "service" / "statefulset.yaml").read_text())
    manifest["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_names_every_manifest(path):
    kustomization = yaml.safe_load(path.read_text())
    assert {path.parent / name for name in kustomization["resources"]} == {
        other for other in MANIFESTS if other.parent == path.parent
    }
    images = {entry["name"] for entry in kustomization["images"]}
    assert {container["image"] for folder, _, container in containers() if folder == path.parent.name} >= images


def test_containers_have_limits_and_no_rights_that_they_do_not_need():
    seen = 0
    for _, spec, container in containers():
        seen += 1
        rights = container["securityContext"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        whole = {**spec["securityContext"], **rights}
        if whole.get("runAsUser") == 0:
            assert container["name"] in ("zeek", "owner")
        else:
            assert whole["runAsNonRoot"]
    assert seen == 5


def test_tapline_is_started_with_settings_that_there_are():
    for folder, spec, container in containers():
        if container["name"] != "tapline":
            continue
        settings = objects(FOLDER / folder)["ConfigMap"]["data"]
        assert misspelt_settings(yaml.safe_dump([settings, container])) == []
        assert unknown_flags(container["args"]) == []
        given = {name.removeprefix("TAPLINE_").lower(): value for name, value in settings.items() if "TAPLINE_" in name}
        read = Settings(**given, api_key="k")
        assert [port["containerPort"] for port in container["ports"]] == [read.port]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert spec["terminationGracePeriodSeconds"] > read.shutdown_seconds
        assert spec["enableServiceLinks"] is False  # TAPLINE_PORT would be tcp://...
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert "/tmp" in mounted
        for kept in (read.data_dir, read.state_dir):
            assert any(kept.is_relative_to(mount) for mount in mounted)


def test_the_service_is_reached_by_its_names_and_port():
    service, policy, settings = (
        objects(FOLDER / "service")[kind] for kind in ("Service", "NetworkPolicy", "ConfigMap")
    )
    (port,) = service["spec"]["ports"]
    assert str(port["port"]) == settings["data"]["TAPLINE_PORT"]
    assert policy["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["port"]}]
    assert service["metadata"]["name"] in settings["data"]["TAPLINE_SERVED_NAMES"].split(",")
