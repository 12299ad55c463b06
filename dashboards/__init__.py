"""What Tunescope shows: the static report and the Streamlit app."""
