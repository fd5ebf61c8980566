def run(main):
    main()
