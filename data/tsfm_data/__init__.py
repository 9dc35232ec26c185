"""The data and evaluation layer that every model of the suite shares; it knows no model."""
