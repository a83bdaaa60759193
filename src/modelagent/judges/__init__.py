"""Judges: evidence in, verdict with reasons out. Pure statistics on `math`; no clock, no file, no chance.

paired.py       tests for two models on the same samples, and sample sizes
sequential.py   tests that may be looked at after every sample
canary.py       before: is the candidate not worse?
probation.py    after: has it shown itself worse, or has the input changed?
drift.py        later: has something changed, at an unknown time?
"""
