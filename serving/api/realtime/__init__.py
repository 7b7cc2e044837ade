"""Bidirectional streaming: WebSocket connections on the serving port, whose text frames are events that ask for responses
and that responses are made of. Knows HTTP's routes by their paths only.
"""
