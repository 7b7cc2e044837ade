"""Pages, order and filters of the List operations."""

from __future__ import annotations

import pytest

from local_mode.contracts import Record
from tests.unit.local_mode.control.conftest import Caller, Refused

NAMES = [f"e{number:02}" for number in range(25)]


@pytest.fixture
def filled(caller: Caller) -> Caller:
    for number, name in enumerate(NAMES):
        record = {
            "EndpointName": name,
            "EndpointArn": caller.resources.arn("endpoint", name),
            "EndpointStatus": "Failed" if number % 5 == 0 else "InService",
            "CreationTime": 1000.0 + number // 2,
            "LastModifiedTime": 2000.0 - number,
        }
        caller.resources.add("endpoint", name, record)
    return caller


def names(reply: Record) -> list[str]:
    return [endpoint["EndpointName"] for endpoint in reply["Endpoints"]]


@pytest.mark.parametrize("by", ["Name", "CreationTime", "Status"])
@pytest.mark.parametrize("order", ["Ascending", "Descending"])
@pytest.mark.parametrize("size", [1, 7, 25, 100])
def test_pages_together_are_the_whole_in_order(filled: Caller, by: str, order: str, size: int) -> None:
    found: list[str] = []
    page: Record = {}
    while not found or "NextToken" in page:
        token = {"NextToken": page["NextToken"]} if page else {}
        page = filled("ListEndpoints", SortBy=by, SortOrder=order, MaxResults=size, **token)
        found += names(page)
    records = {record["EndpointName"]: record for record in filled.resources.all("endpoint")}
    member = {"Name": "EndpointName", "CreationTime": "CreationTime", "Status": "EndpointStatus"}[by]
    ordered = sorted(NAMES, key=lambda name: (records[name][member], name), reverse=order == "Descending")
    assert found == ordered


def test_newest_first_and_ten_at_a_time(filled: Caller) -> None:
    assert names(filled("ListEndpoints")) == NAMES[:-11:-1]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"NameContains": "E1"}, NAMES[10:20]),
        ({"StatusEquals": "Failed"}, NAMES[::5]),
        ({"CreationTimeAfter": 1011.0}, NAMES[24:]),
        ({"CreationTimeBefore": 1001.0}, NAMES[:2]),
        ({"LastModifiedTimeAfter": 1997.0}, NAMES[:3]),
        ({"LastModifiedTimeBefore": 1977.0, "StatusEquals": "InService"}, NAMES[24:]),
    ],
)
def test_filters(filled: Caller, filters: Record, left: list[str]) -> None:
    assert sorted(names(filled("ListEndpoints", MaxResults=100, **filters))) == left


def test_a_page_goes_on_where_its_last_one_was_removed(filled: Caller) -> None:
    first = filled("ListEndpoints", SortBy="Name", SortOrder="Ascending", MaxResults=5)
    filled.resources.remove("endpoint", names(first)[-1])
    then = filled(
        "ListEndpoints", SortBy="Name", SortOrder="Ascending", MaxResults=5, NextToken=first["NextToken"]
    )
    assert names(then) == NAMES[5:10]


@pytest.mark.parametrize("token", ["", "x", "bm90IGpzb24=", "WzFd"])
def test_a_strange_token_is_refused(filled: Caller, token: str) -> None:
    with pytest.raises(Refused, match="NextToken") as caught:
        filled("ListEndpoints", NextToken=token)
    assert caught.value.code == "ValidationException"


def test_a_token_of_another_order_is_refused(filled: Caller) -> None:
    token = filled("ListEndpoints", SortBy="Status")["NextToken"]
    with pytest.raises(Refused, match="same SortBy"):
        filled("ListEndpoints", SortBy="Name", NextToken=token)


def test_components_by_endpoint_and_variant(caller: Caller) -> None:
    for name, endpoint in (("a", "one"), ("b", "two")):
        caller.resources.add(
            "inference-component",
            name,
            {
                "InferenceComponentName": name,
                "EndpointName": endpoint,
                "VariantName": f"of-{endpoint}",
                "InferenceComponentStatus": "InService",
                "CreationTime": 1.0,
                "LastModifiedTime": 1.0,
            },
        )
    for filters in ({"EndpointNameEquals": "two"}, {"VariantNameEquals": "of-two"}):
        found = caller("ListInferenceComponents", **filters)["InferenceComponents"]
        assert [component["InferenceComponentName"] for component in found] == ["b"]
