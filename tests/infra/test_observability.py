"""The dashboard asks for metrics that there are, and Prometheus's settings find the ports that Ray exports them at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from distsens.distributed.gauges import LAST_CHECKPOINT, OF_EPOCHS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "observability"
OURS = {f"ray_{name}" for name in (*OF_EPOCHS, LAST_CHECKPOINT)}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def rays_own() -> set[str]:
    """The metrics that Ray's own dashboards ask for."""
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return {name for path in panels.glob("*.py") for name in re.findall(r"ray_\w+", path.read_text())}


def unknown_metrics(dashboard: dict[str, Any]) -> set[str]:
    asked = set(re.findall(r"ray_\w+", json.dumps(dashboard)))
    return asked - OURS - rays_own()


def test_every_metric_that_the_dashboard_asks_for_is_ours_or_rays(dashboard: dict[str, Any]) -> None:
    assert unknown_metrics(dashboard) == set()
    planted = json.loads(json.dumps(dashboard).replace("ray_distsens_robust_accuracy", "ray_distsens_robust_acuracy"))
    assert unknown_metrics(planted) == {"ray_distsens_robust_acuracy"}


def test_every_metric_of_ours_is_on_the_dashboard_and_in_its_page(dashboard: dict[str, Any]) -> None:
    page = (FOLDER / "README.md").read_text()
    for name in OURS:
        assert name in json.dumps(dashboard)
        assert f"`{name}`" in page


def test_panels_have_a_unit_a_query_a_legend_and_a_place_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
        assert all(target["legendFormat"] for target in panel["targets"])
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_prometheus_looks_where_ray_lists_its_nodes_and_for_the_pods_ports() -> None:
    settings = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    machines, pods = settings["scrape_configs"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (listed,) = machines["file_sd_configs"][0]["files"]
    unit = (ROOT / "cluster" / "hosts" / "ray-head.service").read_text()
    (state,) = re.findall(r"^StateDirectory=(\S+)$", unit, re.MULTILINE)
    (folder,) = re.findall(r"^ExecStart=.* --temp-dir (\S+)$", unit, re.MULTILINE)
    folder = folder.replace("${STATE_DIRECTORY}", f"/var/lib/{state}")  # as systemd does
    assert Path(listed) == Path(folder) / PROMETHEUS_SERVICE_DISCOVERY_FILE
    port = next(rule["regex"] for rule in pods["relabel_configs"] if "port_name" in rule["source_labels"][0])
    cluster = (ROOT / "cluster" / "kubernetes" / "base" / "ray-cluster.yaml").read_text()
    assert re.search(rf"name: {port}\b", cluster)
    namespace = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "base" / "namespace.yaml").read_text())
    assert pods["kubernetes_sd_configs"][0]["namespaces"]["names"] == [namespace["metadata"]["name"]]
