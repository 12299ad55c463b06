"""Figures: pure functions from frames or arrays to plotly figures. None needs Streamlit, none calls ``show``."""
