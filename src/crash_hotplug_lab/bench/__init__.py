"""What an update in place costs beside a full reload, timed from outside with ptrace."""
