"""The command line, Ray jobs and worker groups, preflight and monitoring."""
