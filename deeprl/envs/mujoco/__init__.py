"""MuJoCo tasks of Gymnasium for many environments at once: in threads (`threads`), on a GPU (`warp`)."""
