"""Covering the pool by kernels, design of experiments on random features, and choice by a model's doubt."""
