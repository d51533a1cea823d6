"""Behind real proxies, nginx and HAProxy: `nox -s proxies`. Not among the ordinary tests, which need neither."""
