from tinyops.cli import main

raise SystemExit(main())
