"""The list of commands: importing a module registers its command. A new one is a file and a line here."""

from l4spec.cli import (  # noqa: F401
    accuracy,
    build,
    calibrate,
    compare,
    export,
    generate,
    graph,
    import_,
    ls,
    measure,
    plan,
    run,
    schema,
    show,
    validate,
    verify,
)
