"""Every page by its path."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from tapline.service.dashboard.alerts_page import alert_page, alerts_page
from tapline.service.dashboard.board import Board
from tapline.service.dashboard.captures_page import capture_page, captures_page
from tapline.service.dashboard.flow_page import flow_page
from tapline.service.dashboard.flows_page import flows_page
from tapline.service.dashboard.health_page import health_page
from tapline.service.dashboard.hosts_page import host_page, hosts_page
from tapline.service.dashboard.live_page import LiveReading, live_page
from tapline.service.dashboard.models_page import card_page, models_page
from tapline.service.dashboard.trace_page import trace_page
from tapline.service.dashboard.unusual import Unusual

PATHS = (
    "/", "/alerts", "/alert", "/flows", "/flow", "/hosts", "/host", "/trace", "/captures", "/capture", "/models",
    "/card", "/health",
)  # fmt: skip

BUILD_SECONDS = 15.0
"""Longest time to build a page: questions to the history have deadlines of their own."""


def add_pages(board: Board) -> None:
    """Register the pages."""
    reading = LiveReading(board, Unusual(board))

    @ui.page("/")
    def live(request: Request) -> None:
        live_page(board, reading, request)

    @ui.page("/alerts", response_timeout=BUILD_SECONDS)
    async def alerts(request: Request) -> None:
        await alerts_page(board, request)

    @ui.page("/alert", response_timeout=BUILD_SECONDS)
    async def alert(request: Request) -> None:
        await alert_page(board, request)

    @ui.page("/flows", response_timeout=BUILD_SECONDS)
    async def flows(request: Request) -> None:
        await flows_page(board, request)

    @ui.page("/flow", response_timeout=BUILD_SECONDS)
    async def flow(request: Request) -> None:
        await flow_page(board, request)

    @ui.page("/hosts", response_timeout=BUILD_SECONDS)
    async def hosts(request: Request) -> None:
        await hosts_page(board, request)

    @ui.page("/host", response_timeout=BUILD_SECONDS)
    async def host(request: Request) -> None:
        await host_page(board, request)

    @ui.page("/trace", response_timeout=BUILD_SECONDS)
    async def trace(request: Request) -> None:
        await trace_page(board, request)

    @ui.page("/captures")
    def captures(request: Request) -> None:
        captures_page(board, request)

    @ui.page("/capture", response_timeout=BUILD_SECONDS)
    async def capture(request: Request) -> None:
        await capture_page(board, request)

    @ui.page("/models")
    def models(request: Request) -> None:
        models_page(board, request)

    @ui.page("/card")
    def card(request: Request) -> None:
        card_page(board, request)

    @ui.page("/health")
    def health(request: Request) -> None:
        health_page(board, request)
