#!/bin/bash
# A stand-in: doctor only asks whether the tool is there.
